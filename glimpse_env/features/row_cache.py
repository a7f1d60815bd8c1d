"""The rows of a large table that were used last, kept in memory.

Knows rows and how much room there is for them. It does not know where they are read from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Half = npt.NDArray[np.float16]
Integers = npt.NDArray[np.int64]


class RecentRows(threading.local):
    """Rows (L, D), float16, of which those that were not used for longest make room for others.

    A row that the last call used stays: where more are under way than there is room for, some are always here, and not
    each only until it would be used again. Every thread that asks has rows of its own: none sees another's half read,
    and none waits.

    Args:
        rows: N, how many there are.
        shape: (L, D).
        room: bytes that rows may take in each thread; the system gives them as they are used.

    Attributes:
        array: (K, L, D), the rows that are kept.
    """

    def __init__(self, rows: int, shape: tuple[int, int], room: int) -> None:
        count = min(room // max(2 * shape[0] * shape[1], 1), rows)
        self.array: Half = np.empty((count, *shape), np.float16)
        self._place = np.full(rows, -1, np.int32)  # of every row: -1 is not kept
        self._row = np.full(count, -1)  # of every place
        self._used = np.full(count + 1, -1)  # when; the last is of the rows that are not kept
        self._now = 0

    def find(self, rows: Integers) -> Integers:
        """The places of rows (B,), each in [0, N); -1 for one that is not kept."""
        places: Integers = self._place[rows].astype(np.int64)
        self._now += 1
        self._used[places] = self._now
        return places

    def keep(self, rows: Integers, read: Callable[[Half, Integers, Integers], None]) -> Integers:
        """Keep rows from now on; returns those that there is no room for.

        Args:
            rows: (B,), each in [0, N).
            read: called with an array, places (B',) in it, and the rows (B',) that are to be written there. If it
                raises, none of these is kept.
        """
        last = self._now
        missing = np.unique(rows[self.find(rows) < 0])
        free = (self._used[:-1] < last).nonzero()[0]
        freed = free[np.argsort(self._used[free], kind="stable")][: len(missing)]
        missing, left = missing[: len(freed)], missing[len(freed) :]
        if len(missing):
            given_up = self._row[freed]
            self._place[given_up[given_up >= 0]] = -1
            self._row[freed] = -1
            read(self.array, freed, missing)
            self._row[freed], self._place[missing], self._used[freed] = missing, freed, self._now
        return left
