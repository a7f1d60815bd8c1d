"""Captioned sets of images by name."""

from __future__ import annotations

import os
from pathlib import Path

from glimpse_env.datasets.base import SPLITS, CaptionDataset, DataError, Split, check_split
from glimpse_env.datasets.flickr8k import Flickr8k
from glimpse_env.datasets.karpathy import Karpathy
from glimpse_env.datasets.shapes import Shapes

DATASETS = ("shapes", "flickr8k", "flickr30k", "coco")

__all__ = ["DATASETS", "SPLITS", "CaptionDataset", "DataError", "Shapes", "Split", "check_split", "make_dataset"]


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
        name: ``shapes``, ``flickr8k``, ``flickr30k`` or ``coco``.
        split: ``train``, ``val`` or ``test``.
        data_root: where the dataset lies, as in ``find_data_root``; not read by Shapes.

    Raises:
        ValueError: the dataset or the split is unknown.
        FileNotFoundError: the data, or the list of the split, is not there.
        DataError: a file of the dataset is wrong; the message names it.
    """
    split = check_split(split)
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; expected one of {', '.join(DATASETS)}")
    if name == "shapes":
        return Shapes(split)
    root = find_data_root(name, data_root)
    return Flickr8k.open(split, root) if name == "flickr8k" else Karpathy.open(name, split, root)
