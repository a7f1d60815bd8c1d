"""Worlds: what is looked at, its references, and the registry of them by name."""

from glimpse_env.datasets.base import (
    CaptionDataset,
    DataError,
    DatasetSpec,
    GroundedDataset,
    LabelledDataset,
    MaskedDataset,
    Split,
)
from glimpse_env.datasets.registry import WORLDS, find_world, make_dataset, world_of
from glimpse_env.datasets.shapes import Shapes

__all__ = [
    "WORLDS",
    "CaptionDataset",
    "DataError",
    "DatasetSpec",
    "GroundedDataset",
    "LabelledDataset",
    "MaskedDataset",
    "Shapes",
    "Split",
    "find_world",
    "make_dataset",
    "world_of",
]
