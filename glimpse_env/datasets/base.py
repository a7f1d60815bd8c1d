"""What every dataset is: images in a fixed order, each with its reference captions.

Knows nothing of files, encoders or models; the datasets beside it know where their images come from.
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args, runtime_checkable

from PIL import Image

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class DataError(ValueError):
    """A dataset's file is wrong: the message names the file, the line where there is one, and the cure."""


@runtime_checkable
class CaptionDataset(Protocol):
    """One split of a captioned set of images. Rows run from 0 to ``len(dataset) - 1`` and never change order.

    Attributes:
        name: the dataset's short name, such as ``flickr8k``.
        split: which part of it.
        procedural: whether images are computed rather than read, so that storing their features would gain nothing.
    """

    name: str
    split: Split
    procedural: bool

    def __len__(self) -> int:
        """Number of images in the split."""
        ...

    def image(self, row: int) -> Image.Image:
        """The picture of a row as an RGB image.

        Raises:
            DataError: the file is missing, truncated or not an image.
        """
        ...

    def image_id(self, row: int) -> str:
        """The name of a row's image, unique within the dataset."""
        ...

    def references(self, row: int) -> list[list[str]]:
        """The reference captions of a row as lists of words: lower case, no punctuation, never ``<unk>``-encoded."""
        ...

    def fingerprint(self) -> str:
        """A string that changes whenever an image of the split, or their order, may have changed."""
        ...


def check_split(split: str) -> Split:
    """``split`` itself when it is one of train, val, test.

    Raises:
        ValueError: it is none of them.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
