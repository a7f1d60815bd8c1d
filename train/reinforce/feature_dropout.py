"""A feature table with dropout: a fraction of the annotation values of each batch is set to zero.

Dropout keeps the policy from relying on what the decoder remembers of its training images.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from glimpse_env.features.shards import Half
from glimpse_env.features.table import FeatureTable


class FeatureDropout(FeatureTable):
    """The annotations of the current batch, with dropout (Srivastava et al. 2014). Other rows cannot be read.

    A fraction ``rate`` of the values, in [0, 1), is set to zero; the others are divided by 1 − rate.
    """

    def __init__(self, table: FeatureTable, rate: float) -> None:
        super().__init__(np.zeros((0, *table.shape[1:]), np.float16))
        self._table, self._rate, self.masks = table, rate, table.masks
        self._positions = np.full(len(table), -1)  # of each row in the batch; -1 outside it

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, L, D) of all images."""
        return self._table.shape

    def draw(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> None:
        """Make ``rows`` (B,) the current batch and draw its dropout mask."""
        annotations = self._table[rows]
        dropped = rng.random(annotations.shape, np.float32) < self._rate
        self._array = np.where(dropped, np.float16(0), annotations / np.float16(1 - self._rate))
        self._positions.fill(-1)
        self._positions[rows] = np.arange(len(rows))

    def _batch(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        positions = self._positions[np.asarray(rows)]
        if positions.min() < 0:
            raise IndexError("an image that is not of the batch was asked for; draw() its rows first")
        return positions

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """Annotations of ``rows`` of the batch. A fresh array."""
        return super().__getitem__(self._batch(np.arange(len(self))[rows] if isinstance(rows, slice) else rows))

    def gather(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """Annotations (B, D) of one location of each of B rows of the batch."""
        return super().gather(self._batch(rows), locations)

    def is_resident(self, device: torch.device) -> bool:
        """Never: every batch is another."""
        return False
