"""Hyperparameters of caption training for each dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from glimpse_env.datasets import find_world


@dataclass(frozen=True)
class Recipe:
    """What depends on the dataset: sizes of the models, and defaults of the options of the same names.

    The values here are those of drawn scenes.
    """

    epochs: int = 12
    batch_images: int = 16  # steps, not samples, teach the attention to compare two locations
    learning_rate: float = 1e-3
    semi_epochs: int = 3
    semi_learning_rate: float = 1e-3
    label_smoothing: float = 0.0
    doubly_stochastic: float = 0.0  # most tiles are empty
    guidance: float = 1.0
    estimator: Literal["straight-through", "reinforce"] = "reinforce"
    feature_dropout: float = 0.0
    min_count: int = 1
    mirrorable: bool = False  # their captions tell left from right
    embed_dim: int = 64
    hidden_dim: int = 192
    context_dim: int = 96
    attention_dim: int = 96
    dropout: float = 0.1
    init: Literal["mean", "zeros"] = "zeros"  # all it knows of the image comes from glimpses


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
    mirrorable=True,
    embed_dim=300,
    hidden_dim=512,
    context_dim=512,
    attention_dim=256,
    dropout=0.5,
    init="mean",
)
RECIPES = {"scenes": Recipe(), "photographs": PHOTOGRAPHS}


def find_recipe(dataset: str) -> Recipe:
    """The recipe of a world: that of its family, with the world's own hyperparameters.

    Raises:
        ValueError: there is no such world, or a hyperparameter that recipes do not have.
    """
    world = find_world(dataset)
    try:
        return replace(RECIPES[world.recipe], **world.hyperparameters)
    except (TypeError, KeyError) as error:
        raise ValueError(f"world {world.name!r} has no recipe ({error}); see train/captioner/recipes.py") from error
