"""Mirrored photographs, which double what a CNN's table holds: a dataset seen in a mirror, and which images may be.

Knows images and words. It does not know models or batches.
"""

from __future__ import annotations

from PIL import Image, ImageOps

from glimpse_env.datasets import CaptionDataset

SIDES = frozenset("left right".split())  # words that a mirror makes wrong


class Mirrored:
    """A split whose images are flipped left to right; a :class:`~glimpse_env.datasets.CaptionDataset`.

    Args:
        dataset: the split as it is.
    """

    def __init__(self, dataset: CaptionDataset) -> None:
        self.name, self.split, self.procedural = dataset.name, dataset.split, dataset.procedural
        self._dataset = dataset

    def __len__(self) -> int:
        """Number of images in the split."""
        return len(self._dataset)

    def image(self, row: int) -> Image.Image:
        """The picture of a row, flipped."""
        return ImageOps.mirror(self._dataset.image(row))

    def image_id(self, row: int) -> str:
        """The name of a row's image."""
        return self._dataset.image_id(row)

    def references(self, row: int) -> list[list[str]]:
        """The captions of a row, unchanged."""
        return self._dataset.references(row)

    def fingerprint(self) -> str:
        """Of the split, and that it is flipped."""
        return f"mirrored {self._dataset.fingerprint()}"


def has_sides(dataset: CaptionDataset, row: int) -> bool:
    """Whether a caption of the image tells left from right, so that its mirror image would be described wrongly."""
    return any(not SIDES.isdisjoint(reference) for reference in dataset.references(row))
