"""BLEU of many captions that are complete: what is paid at their end, and what reports say of them.

Counts whole captions at once, in arrays. It does not know how they came about, nor when they are paid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from glimpse_env.metrics.incremental_bleu import tabulate
from glimpse_env.metrics.ngram_table import ReferenceTable

_WITHOUT_END = np.array([[0], [1]])


class WholeBleu:
    """BLEU-1 to BLEU-N of many captions that are complete, counted at once, with and without their ``<end>``.

    Args:
        table: the references, each of which ends with ``<end>``.
        end: the id of ``<end>``, which no caption says but as its last word.
        smoothing: 0, 1 or 2, as in ``sentence_bleu``; those in which an order's precision depends on no other.
        max_length: T, the most words of a caption; the logarithms of all precisions up to it are tabulated.
    """

    def __init__(self, table: ReferenceTable, end: int, smoothing: int, max_length: int) -> None:
        self.table, self.end = table, end
        self._orders = np.arange(table.orders)
        self._windows = np.arange(max_length) + self._orders[::-1, None]
        self._powers = (table.base**self._orders)[:, None]
        self._logs = tabulate((1.0,) * table.orders, smoothing, max_length)[0].numpy()  # order, length, matches

    def scores(
        self, rows: npt.NDArray[np.int64], words: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """BLEU of each order, with equal weights of the n-grams up to it.

        Args:
            rows: the image of each caption, (B,).
            words: ids, (B, T); after a caption's last word an id that no reference has.
            lengths: words of each, (B,), at least 1.

        Returns:
            (2, B, N): of captions and references as they are, and of both without ``<end>``.
        """
        keys, limits, closest, ends = self.table[rows]
        captions, width = keys.shape
        words = words[:, : lengths.max()]
        slots = np.arange(captions)
        first = (slots * width)[:, None]  # of each caption's keys in all of them
        nowhere = first + (width - 1)  # ``LAST``, of which there is none
        known, flat = torch.from_numpy(keys), keys.ravel()
        digits = np.full(
            (captions, len(self._orders) - 1 + words.shape[1]), -1
        )  # −1 makes n-grams that begin too early < 0
        np.add(words, 1, out=digits[:, len(self._orders) - 1 :])
        wanted = digits.take(
            self._windows[:, : words.shape[1]], 1
        )  # (B, N, T): the word before each, by how long before
        wanted *= self._powers
        wanted = wanted.cumsum(1)  # the n-grams that end with each word, by order
        asked = wanted.reshape(captions, -1)
        places = torch.searchsorted(known, torch.from_numpy(asked)).numpy() + first
        places = np.where(flat.take(places) == asked, places, nowhere)
        said = np.bincount(places.ravel(), minlength=keys.size).reshape(keys.shape)
        clipped = np.minimum(said, limits).cumsum(1)[slots[:, None], ends - 1]  # matches of all orders up to each
        clipped[:, 1:] -= clipped[:, :-1].copy()
        last = lengths - 1
        ended = words[slots, last] == self.end
        found = places.reshape(wanted.shape)[slots, :, last] < nowhere  # it is said once, so what it completes matched
        matches = np.array([clipped, clipped - (found & ended[:, None])])
        length = np.array([lengths, lengths - ended])
        asked = np.minimum(length + _WITHOUT_END, closest.shape[1] - 1)  # references are as long as they are with <end>
        brevity = np.minimum(1 - (closest[slots, asked] - _WITHOUT_END) / np.maximum(length, 1), 0)[..., None]
        logs = self._logs[self._orders, length[..., None], matches].cumsum(-1)
        scores: npt.NDArray[np.float64] = np.exp(logs / (self._orders + 1) + brevity)
        return scores
