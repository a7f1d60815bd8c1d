"""The model of caption training, a captioner and its attention: fresh in the sizes of a dataset, or loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from agents.attention import AdditiveAttention, AttentionConfig, load_attention
from agents.loading import shipped_attention
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import CaptionDataset, find_world
from glimpse_env.datasets.registry import check_grid
from glimpse_env.models.captioner import Captioner, load_captioner, shipped_captioners
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from train.captioner.recipes import find_recipe


class CaptioningModel(nn.Module):
    """A captioner and the attention that is trained with it, if any."""

    def __init__(self, captioner: Captioner, attention: AdditiveAttention | None) -> None:
        super().__init__()
        self.captioner, self.attention = captioner, attention


def read_vocabulary(dataset: CaptionDataset, min_count: int) -> Vocabulary:
    """The words that occur at least ``min_count`` times in the references of a split."""
    references = (reference for row in range(len(dataset)) for reference in dataset.references(row))
    return Vocabulary.from_captions(references, min_count, blank=find_world(dataset.name).blank)


def new_encoder(dataset: str, name: str) -> CNNEncoder:
    """A fresh encoder: ``tile``, ``efficientnet-lite2`` or a torchvision backbone.

    It scales inputs to the size that the world says. That of a world of tiles is for tiles only.

    Raises:
        ValueError: there is no such encoder, or its grid is not the world's.
    """
    world, size, grid = find_world(dataset), find_world(dataset).image_size, find_world(dataset).grid
    side = size[0] if size and size[0] == size[1] else size  # as the files have it
    if name == "tile":
        return CNNEncoder(EncoderConfig(image_size=side, grid=grid.shape) if side and grid else EncoderConfig())
    encoder = CNNEncoder.pretrained(name, 224 if side is None or world.encoder == "tile" else side)
    if grid is not None and (1, *grid.shape) == encoder.grid.shape:  # a strip
        encoder.config = replace(encoder.config, grid=grid.shape)
    check_grid(dataset, encoder.grid, f"encoder {name!r}", "choose another encoder, or image_size= and grid= that fit")
    return encoder


def new_model(dataset: CaptionDataset, encoder_name: str, min_count: int, attention: bool) -> CaptioningModel:
    """A fresh captioner with the vocabulary of a training split, and a fresh attention where the model has one.

    Words rarer than ``min_count`` become ``<unk>``. Errors are those of ``new_encoder``.
    """
    recipe, encoder = find_recipe(dataset.name), new_encoder(dataset.name, encoder_name)
    vocabulary = read_vocabulary(dataset, min_count)
    width = encoder.feature_dim
    sizes = (recipe.embed_dim, recipe.hidden_dim, recipe.context_dim)
    decoder = CaptionDecoder(DecoderConfig(len(vocabulary), width, *sizes, recipe.dropout, recipe.init))
    module = AdditiveAttention(AttentionConfig(width, recipe.hidden_dim, recipe.attention_dim)) if attention else None
    return CaptioningModel(Captioner(encoder, decoder, vocabulary, dataset.name), module)


def load_model(start: str, attention: bool, dataset: CaptionDataset) -> CaptioningModel:
    """A trained captioner and attention, trainable; the encoder is spread over the dataset's tiles if they differ.

    ``start`` is the directory of a run, or the name of a shipped captioner, whose soft attention is shipped, too.

    Raises:
        FileNotFoundError: the run directory holds none, or no soft attention is shipped.
        ValueError: the dataset has another grid, and the encoder is not of tiles.
    """
    shipped = start in shipped_captioners() and not Path(start).is_dir()
    captioner = load_captioner(start if shipped else Path(start) / "captioner.safetensors")
    captioner.encoder.build()  # so that its parameters are there
    captioner.requires_grad_(True)
    module = None
    if attention:
        file = shipped_attention("soft", start) if shipped else Path(start) / "attention.safetensors"
        module = load_attention(file).requires_grad_(True)
    grid, encoder = find_world(dataset.name).grid, captioner.encoder
    if grid is not None and encoder.encodes_single_locations and encoder.grid.shape != grid.shape:
        encoder = captioner.encoder = encoder.with_grid(grid.shape)
    check_grid(dataset.name, encoder.grid, f"captioner {start}", "start from one with an encoder of tiles, or anew")
    captioner.dataset = dataset.name
    return CaptioningModel(captioner, module)


def ema_update(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The update of an exponential moving average of weights: after n updates the decay is at most (1 + n) / (10 + n).

    With a constant decay of 0.998 the weights of the first step still weigh a third after 560.
    """

    def update(mean: Tensor, weights: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(mean, weights, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update
