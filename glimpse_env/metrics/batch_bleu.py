"""BLEU of many finished captions at once, counted in arrays: the usual reward and the BLEU in ``info``."""

from __future__ import annotations

import numpy as np
import torch

from glimpse_env.core.arrays import Floats, Integers
from glimpse_env.metrics.incremental_bleu import tabulate_log_precisions
from glimpse_env.metrics.references import ReferenceTable

_WITHOUT_END = np.array([[0], [1]])  # words taken away from the captions and references of each count


class BatchBleu:
    """BLEU-1 to BLEU-N of many finished captions, with and without their ``<end>``.

    Args:
        table: the references, each of which ends with ``<end>``.
        end: the id of ``<end>``, which only stands as the last word of a caption.
        smoothing: 0, 1 or 2, as in ``sentence_bleu``: the methods in which no order's precision depends on another.
        max_length: T, the most words of a caption.
    """

    def __init__(self, table: ReferenceTable, end: int, smoothing: int, max_length: int) -> None:
        self.table, self.end = table, end
        self._orders = np.arange(table.orders)
        self._windows = np.arange(max_length) + self._orders[::-1, None]
        self._powers = (table.base**self._orders)[:, None]
        weights = (1.0,) * table.orders
        self._logs = tabulate_log_precisions(weights, smoothing, max_length)[0].numpy()  # (order, length, matches)

    def scores(self, rows: Integers, words: Integers, lengths: Integers) -> Floats:
        """BLEU of each order, with equal weights of the n-grams up to it.

        Args:
            rows: the image of each caption, (B,).
            words: ids, (B, T); after a caption's last word an id that no reference has.
            lengths: words of each caption, ``<end>`` included, (B,).

        Returns:
            (2, B, N): of captions and references with ``<end>``, and of both without it.
        """
        keys, limits, closest, ends = self.table[rows]
        captions, width = keys.shape
        slots = np.arange(captions)
        first = (slots * width)[:, None]  # position of each caption's keys in those of all captions
        sentinel = first + (width - 1)
        grams = self._ngrams(words[:, : max(lengths.max(), 1)])
        flat = grams.reshape(captions, -1)
        positions = torch.searchsorted(torch.from_numpy(keys), torch.from_numpy(flat)).numpy() + first
        positions = np.where(keys.ravel().take(positions) == flat, positions, sentinel)
        counts = np.bincount(positions.ravel(), minlength=keys.size).reshape(keys.shape)
        clipped = np.minimum(counts, limits).cumsum(1)[slots[:, None], ends - 1]  # matches of all orders up to each
        clipped[:, 1:] -= clipped[:, :-1].copy()
        last = lengths - 1
        ended = words[slots, last] == self.end
        matched = positions.reshape(grams.shape)[slots, :, last] < sentinel  # by the n-grams that end with ``<end>``
        matches = np.array([clipped, clipped - (matched & ended[:, None])])
        length = np.array([lengths, lengths - ended])
        column = np.minimum(length + _WITHOUT_END, closest.shape[1] - 1)  # the table's lengths include ``<end>``
        brevity = np.minimum(1 - (closest[slots, column] - _WITHOUT_END) / np.maximum(length, 1), 0)[..., None]
        logs = self._logs[self._orders, length[..., None], matches].cumsum(-1)
        scores: Floats = np.exp(logs / (self._orders + 1) + brevity)
        return scores

    def _ngrams(self, words: Integers) -> Integers:
        """Keys of the n-grams that end with each word, by order, (B, N, T); < 0 where the caption begins too late."""
        padding = len(self._orders) - 1
        digits = np.full((len(words), padding + words.shape[1]), -1)
        np.add(words, 1, out=digits[:, padding:])
        grams = digits.take(self._windows[:, : words.shape[1]], 1)
        grams *= self._powers
        keys: Integers = grams.cumsum(1)
        return keys
