"""What caption training trains: a captioner and its attention, in the sizes that suit a dataset.

Knows sizes, defaults and starting weights. It does not know losses, optimisers or runs.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from agents.attention import AdditiveAttention, AttentionConfig, load_attention
from agents.loading import shipped_attention
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import CaptionDataset
from glimpse_env.datasets.shapes import SMALL, TILE, Shapes
from glimpse_env.models.captioner import Captioner, load_captioner, shipped_captioners
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from train.captioner.recipes import RECIPES


class Student(nn.Module):
    """What is trained together: the captioner and, unless there is none, the attention."""

    def __init__(self, captioner: Captioner, attention: AdditiveAttention | None) -> None:
        super().__init__()
        self.captioner = captioner
        self.attention = attention


def new_student(dataset: CaptionDataset, encoder_name: str, min_count: int, attention: bool) -> Student:
    """A fresh captioner, its vocabulary read off the dataset, and a fresh attention.

    Args:
        dataset: the training split.
        encoder_name: ``tile``, ``efficientnet-lite2`` or a torchvision backbone.
        min_count: rarer words become ``<unk>``.
        attention: whether there is to be one.
    """
    recipe = RECIPES[dataset.name]
    if encoder_name == "tile":
        side = dataset.world.side if isinstance(dataset, Shapes) else SMALL.side
        encoder = CNNEncoder(EncoderConfig(image_size=side * TILE, grid=(side, side)))
    else:
        encoder = CNNEncoder.pretrained(encoder_name)
    references = (reference for row in range(len(dataset)) for reference in dataset.references(row))
    vocabulary = Vocabulary.from_captions(references, min_count)
    width = encoder.config.feature_dim
    decoder = CaptionDecoder(
        DecoderConfig(
            vocab_size=len(vocabulary),
            feature_dim=width,
            embed_dim=recipe.embed_dim,
            hidden_dim=recipe.hidden_dim,
            context_dim=recipe.context_dim,
            dropout=recipe.dropout,
            init=recipe.init,
        )
    )
    module = AdditiveAttention(AttentionConfig(width, recipe.hidden_dim, recipe.attention_dim)) if attention else None
    return Student(Captioner(encoder, decoder, vocabulary, dataset.name), module)


def trained_student(start: str, attention: bool, dataset: CaptionDataset) -> Student:
    """The captioner and the attention to go on from, trainable; spread over the dataset's tiles if those are others.

    Args:
        start: the directory of a run that has left them, or the name of a shipped captioner, which comes with the soft
            attention that is shipped for it.
        attention: whether there is to be one.
        dataset: the training split.

    Raises:
        FileNotFoundError: the run has left none, or no soft attention is shipped.
        ValueError: the dataset has other tiles, but the encoder sees none.
    """
    shipped = start in shipped_captioners() and not Path(start).is_dir()
    captioner = load_captioner(start if shipped else Path(start) / "captioner.safetensors")
    captioner.encoder.build()  # so that its parameters are there
    captioner.requires_grad_(True)
    module = None
    if attention:
        file = shipped_attention("soft", start) if shipped else Path(start) / "attention.safetensors"
        module = load_attention(file).requires_grad_(True)
    if isinstance(dataset, Shapes) and captioner.encoder.config.grid != (dataset.world.side, dataset.world.side):
        captioner.encoder = captioner.encoder.spread((dataset.world.side, dataset.world.side))
    captioner.dataset = dataset.name
    return Student(captioner, module)
