"""Captioned sets of images by name."""

from __future__ import annotations

import os
from pathlib import Path

from glimpse_env.datasets.base import SPLITS, CaptionDataset, DataError, Split, check_split
from glimpse_env.datasets.photos.flickr8k import Flickr8k
from glimpse_env.datasets.photos.karpathy import Karpathy
from glimpse_env.datasets.photos.webdataset import WebDataset
from glimpse_env.datasets.shapes import WORLDS, Shapes

DATASETS = (*WORLDS, "flickr8k", "flickr30k", "coco", "webdataset")

__all__ = [
    "DATASETS",
    "SPLITS",
    "WORLDS",
    "CaptionDataset",
    "DataError",
    "Shapes",
    "Split",
    "WebDataset",
    "check_split",
    "longest_caption",
    "make_dataset",
]


def longest_caption(name: str) -> int:
    """T of a dataset, where nothing else is asked for: words after which a caption of its images is complete."""
    return WORLDS[name].longest if name in WORLDS else 20


def find_data_root(name: str, data_root: str | Path | None = None) -> Path:
    """The folder a dataset lies in.

    Args:
        name: the dataset.
        data_root: the folder itself, or one that holds it under the dataset's name; else ``$GLIMPSE_DATA/<name>``.

    Raises:
        FileNotFoundError: neither is given, or the folder does not exist.
    """
    if data_root is None:
        if not os.environ.get("GLIMPSE_DATA"):
            raise FileNotFoundError(
                f"{name} is not part of this package; say where its folder is with data_root=, "
                f"or set $GLIMPSE_DATA to the folder that holds {name}/"
            )
        data_root = os.environ["GLIMPSE_DATA"]
    root = Path(data_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {str(root)!r}; set data_root= or $GLIMPSE_DATA to where {name} lies")
    return root / name if (root / name).is_dir() else root


def make_dataset(name: str, split: str, data_root: str | Path | None = None) -> CaptionDataset:
    """One split of a dataset.

    Args:
        name: one of ``DATASETS``.
        split: ``train``, ``val`` or ``test``.
        data_root: where the dataset lies, as in ``find_data_root``; not read by the worlds of Shapes.

    Raises:
        ValueError: the dataset or the split is unknown.
        FileNotFoundError: the data, or the list of the split, is not there.
        DataError: a file of the dataset is wrong; the message names it.
    """
    split = check_split(split)
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; expected one of {', '.join(DATASETS)}")
    if name in WORLDS:
        return Shapes(split, WORLDS[name])
    root = find_data_root(name, data_root)
    if name == "webdataset":
        return WebDataset.open(split, root)
    return Flickr8k.open(split, root) if name == "flickr8k" else Karpathy.open(name, split, root)
