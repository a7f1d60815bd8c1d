"""What BLEU needs of an image's reference captions, prepared once an image: n-gram limits and brevity penalties.

Knows word ids. It does not know what is said, nor who asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Prepared(NamedTuple):
    """What is known of the references of B images.

    Attributes:
        keys: of their n-grams, ascending, then ``ReferenceTable.LAST``: (B, G), int64.
        limits: how often a reference has each n-gram, at most, (B, G), int16.
        brevity: logarithm of the brevity penalty by caption length, (B, W), float64; the last holds from W − 1 words.
    """

    keys: npt.NDArray[np.int64]
    limits: npt.NDArray[np.int16]
    brevity: npt.NDArray[np.float64]


class ReferenceTable:
    """The clipped n-gram limits and the reference lengths of images, prepared once an image.

    The n-grams of an image are the nodes of a trie. Nodes are numbered breadth first from 1, the root is 0, and a
    node's key is ``parent · V + word``, so that the keys of an image stand in ascending order and the node of an
    n-gram that grows by a word is found by binary search.

    Args:
        references: gives the reference captions of a row as word ids; negative for words that no caption can say.
        rows: number of images.
        vocab_size: V.
        orders: N, the longest n-gram.
    """

    LAST = 1 << 62  # fills the table; no n-gram has this key

    def __init__(
        self, references: Callable[[int], Sequence[Sequence[int]]], rows: int, vocab_size: int, orders: int = 4
    ) -> None:
        self.vocab_size, self.orders = vocab_size, orders
        self._references = references
        self._place = np.full(rows, -1, np.int32)  # of each row in the arrays below, −1 for rows not asked for yet
        self._prepared = 0
        self._keys = np.full((1, 1), self.LAST, np.int64)
        self._limits = np.zeros((1, 1), np.int16)
        self._brevity = np.zeros((1, 1))

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Prepared:
        """What is known of the references of ``rows``, (B,).

        Raises:
            ValueError: an image has no references with words.
        """
        for row in np.unique(rows[self._place[rows] < 0]).tolist():
            self._prepare(row)
        places = self._place[rows]
        return Prepared(self._keys[places], self._limits[places], self._brevity[places])

    def _prepare(self, row: int) -> None:
        references = self._references(row)
        if not any(len(reference) for reference in references):
            raise ValueError(f"BLEU needs at least one reference with words for row {row}, got {references!r}")
        keys: list[int] = []
        limits: list[int] = []
        nodes = [[0] * len(reference) for reference in references]  # of the n-gram that ends before each word
        for order in range(1, self.orders + 1):
            # Key of the n-gram that starts at each word of each reference, −1 where it leaves the sayable words.
            grown = [
                [
                    parents[i] * self.vocab_size + reference[i + order - 1]
                    if parents[i] >= 0 and reference[i + order - 1] >= 0
                    else -1
                    for i in range(len(reference) - order + 1)
                ]
                for parents, reference in zip(nodes, references, strict=True)
            ]
            counts: dict[int, int] = {}
            for one in grown:
                for key, count in Counter(one).items():
                    if key >= 0 and count > counts.get(key, 0):
                        counts[key] = count
            fresh = sorted(counts)
            number = {key: len(keys) + place + 1 for place, key in enumerate(fresh)}
            nodes = [[number.get(key, -1) for key in one] for one in grown]
            keys += fresh
            limits += [counts[key] for key in fresh]
        lengths = np.unique([len(reference) for reference in references])
        said = np.arange(1, lengths[-1] + 1)
        closest = lengths[np.abs(lengths - said[:, None]).argmin(1)]  # the first of two at one distance: the shorter
        place = self._prepared
        self._make_room(place + 1, len(keys) + 1, len(said) + 1)
        self._keys[place, : len(keys)] = keys
        self._limits[place, : len(keys)] = limits
        self._brevity[place, 1 : len(said) + 1] = np.minimum(1 - closest / said, 0)
        self._place[row] = place
        self._prepared += 1

    def _make_room(self, rows: int, keys: int, lengths: int) -> None:
        """Let the arrays hold so many; the last key of a row is always ``LAST``, its last logarithm 0."""
        more = len(self._keys) if rows > len(self._keys) else 0
        wider, longer = max(keys - self._keys.shape[1], 0), max(lengths - self._brevity.shape[1], 0)
        if more or wider or longer:
            self._keys = np.pad(self._keys, ((0, more), (0, wider)), constant_values=self.LAST)
            self._limits = np.pad(self._limits, ((0, more), (0, wider)))
            self._brevity = np.pad(self._brevity, ((0, more), (0, longer)))
