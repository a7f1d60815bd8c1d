"""Annotations of which a share is dropped, drawn anew for every batch.

A decoder that knows its training images by heart says of them what it would say of no other; where to look is then
learned from what it remembers. It remembers less of an image that never looks the same. Knows tables of features. It
does not know captions or rewards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.features.build import Half
from glimpse_env.features.table import FeatureTable


class DroppedFeatures(FeatureTable):
    """A table of which only the images of a batch can be read, some of their values 0 and the others larger.

    Args:
        table: of all images.
        share: of the values, that are dropped (Srivastava et al. 2014), in [0, 1).
    """

    def __init__(self, table: FeatureTable, share: float) -> None:
        super().__init__(np.zeros((0, *table.shape[1:]), np.float16))
        self._table, self.share = table, share
        self._places = np.full(len(table), -1)  # of each image in the batch

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, L, D), of all images."""
        return self._table.shape

    def __len__(self) -> int:
        return len(self._table)

    def draw(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
        """Make ``rows`` the batch, with values dropped anew."""
        kept = self._table[rows]
        dropped = rng.random(kept.shape, np.float32) < self.share
        self._array = np.where(dropped, np.float16(0), kept / np.float16(1 - self.share))
        self._places.fill(-1)
        self._places[rows] = np.arange(len(rows))

    def _batch(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        places = self._places[np.asarray(rows)]
        if places.min() < 0:
            raise IndexError("an image that is not of the batch was asked for; draw() its rows first")
        return places

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """Annotations of ``rows`` of the batch. A fresh array."""
        return super().__getitem__(self._batch(np.arange(len(self))[rows] if isinstance(rows, slice) else rows))

    def at(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """Annotations (B, D) of one location of each of B rows of the batch."""
        return super().at(self._batch(rows), locations)

    def glimpsed(self, rows: npt.NDArray[np.int64], locations: npt.NDArray[Any], device: torch.device) -> Tensor:
        """``at`` as a tensor on a device."""
        return torch.from_numpy(self.at(rows, locations)).to(device)

    def rows(self, rows: Tensor, device: torch.device) -> Tensor:
        """Annotations of ``rows`` of the batch, as a tensor on a device."""
        return torch.from_numpy(self[rows.cpu().numpy()]).to(device)
