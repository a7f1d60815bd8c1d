"""Hyperparameters of caption training for each dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """What depends on the dataset: sizes of the models, and defaults of the options of the same names."""

    epochs: int
    batch_images: int
    learning_rate: float
    semi_epochs: int
    semi_learning_rate: float
    label_smoothing: float
    doubly_stochastic: float
    guidance: float
    estimator: Literal["straight-through", "reinforce"]
    feature_dropout: float
    min_count: int
    embed_dim: int
    hidden_dim: int
    context_dim: int
    attention_dim: int
    dropout: float
    init: Literal["mean", "zeros"]


PHOTOGRAPHS = Recipe(
    epochs=15,
    batch_images=32,
    learning_rate=5e-4,
    semi_epochs=4,
    semi_learning_rate=4e-4,
    label_smoothing=0.1,
    doubly_stochastic=0.5,
    guidance=0.0,
    estimator="straight-through",
    feature_dropout=0.3,
    min_count=5,
    embed_dim=300,
    hidden_dim=512,
    context_dim=512,
    attention_dim=256,
    dropout=0.5,
    init="mean",
)


SCENES = Recipe(
    epochs=12,
    batch_images=16,  # steps, not samples, teach the attention to compare two locations
    learning_rate=1e-3,
    semi_epochs=3,
    semi_learning_rate=1e-3,
    label_smoothing=0.0,
    doubly_stochastic=0.0,  # most tiles are empty
    guidance=1.0,
    estimator="reinforce",
    feature_dropout=0.0,
    min_count=1,
    embed_dim=64,
    hidden_dim=192,
    context_dim=96,
    attention_dim=96,
    dropout=0.1,
    init="zeros",  # all it knows of the image comes from glimpses
)


RECIPES = {
    "shapes": SCENES,
    "shapes-large": replace(SCENES, epochs=3),
    "flickr8k": replace(PHOTOGRAPHS, min_count=4),
    "flickr30k": PHOTOGRAPHS,
    "coco": PHOTOGRAPHS,
    "webdataset": PHOTOGRAPHS,
}
