"""Mirrored photographs: a dataset whose images are flipped, and which images may be."""

from __future__ import annotations

from PIL import Image, ImageOps

from glimpse_env.datasets import CaptionDataset
from glimpse_env.rendering.inputs import as_picture

_SIDES = frozenset({"left", "right"})  # words that are wrong for the mirrored image


class Mirrored:
    """A split whose images are flipped left to right; a :class:`~glimpse_env.datasets.CaptionDataset`."""

    def __init__(self, dataset: CaptionDataset) -> None:
        self.name, self.split, self.procedural = dataset.name, dataset.split, dataset.procedural
        self.image_id, self.references, self._dataset = dataset.image_id, dataset.references, dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def image(self, row: int) -> Image.Image:
        """The image of a row, flipped."""
        return ImageOps.mirror(as_picture(self._dataset.image(row)))

    def fingerprint(self) -> str:
        """The fingerprint of the split, and that it is flipped."""
        return f"mirrored {self._dataset.fingerprint()}"


def has_sides(dataset: CaptionDataset, row: int) -> bool:
    """Whether a caption names left or right, so that it would be wrong for the mirrored image."""
    return any(not _SIDES.isdisjoint(reference) for reference in dataset.references(row))
