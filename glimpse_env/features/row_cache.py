"""A cache of table rows in memory with least-recently-used eviction."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from glimpse_env.core.arrays import Integers
from glimpse_env.features.shards import Half


class LRURows(threading.local):
    """Rows (L, D), float16, in memory; those that were not used for longest are evicted for others.

    Rows that the previous call used are never evicted. So where more rows are in use than fit, some always hit, and
    not every row is evicted just before its next use. Each thread has a cache of its own, so that none sees a row that
    another is reading, and none waits.

    Args:
        rows: N, number of rows of the table.
        shape: (L, D).
        max_bytes: memory of the rows of each thread, which the system assigns as it is used.

    Attributes:
        array: (K, L, D), the cached rows.
    """

    def __init__(self, rows: int, shape: tuple[int, int], max_bytes: int) -> None:
        count = min(max_bytes // max(2 * shape[0] * shape[1], 1), rows)
        self.array: Half = np.empty((count, *shape), np.float16)
        self._slot_of_row = np.full(rows, -1, np.int32)  # -1 for rows that are not cached
        self._row_of_slot = np.full(count, -1)
        self._last_used = np.full(count + 1, -1)  # by slot; the last entry is written for rows that are not cached
        self._clock = 0

    def find(self, rows: Integers) -> Integers:
        """The slots in ``array`` of rows (B,), each in [0, N); -1 where a row is not cached."""
        slots: Integers = self._slot_of_row[rows].astype(np.int64)
        self._clock += 1
        self._last_used[slots] = self._clock
        return slots

    def load(self, rows: Integers, read: Callable[[Half, Integers, Integers], None]) -> Integers:
        """Cache those of ``rows`` (B,) that are not cached yet; returns those that do not fit.

        ``read(array, slots, rows)`` writes rows (B',) to slots (B',) of an array. If it raises, none of them is cached.
        """
        before = self._clock
        missing = np.unique(rows[self.find(rows) < 0])
        free = (self._last_used[:-1] < before).nonzero()[0]
        slots = free[np.argsort(self._last_used[free], kind="stable")][: len(missing)]
        missing, rest = missing[: len(slots)], missing[len(slots) :]
        if len(missing):
            evicted = self._row_of_slot[slots]
            self._slot_of_row[evicted[evicted >= 0]] = -1
            self._row_of_slot[slots] = -1
            read(self.array, slots, missing)
            self._row_of_slot[slots], self._slot_of_row[missing], self._last_used[slots] = missing, slots, self._clock
        return rest
