"""The reference captions of a split, as words and as n-grams that are integers, prepared once per image."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from glimpse_env.core.arrays import Integers
from glimpse_env.core.vocabulary import END_WORD, Vocabulary
from glimpse_env.datasets import CaptionDataset
from glimpse_env.metrics.ngrams import check_references

_NGRAM_BYTES = np.dtype(np.int64).itemsize + np.dtype(np.int16).itemsize
_MAX_BYTES = 1 << 28  # of n-grams; beyond it, as with a million images, all are dropped and prepared again
_NGRAMS_PER_IMAGE = 256  # first guess; arrays that need not grow are never held twice


class ReferenceCounts(NamedTuple):
    """N-grams and lengths of the references of B images.

    Attributes:
        keys: of the n-grams, ascending, then ``ReferenceTable.SENTINEL``: (B, G), int64.
        limits: the most times that one reference has each n-gram, (B, G), int16.
        closest: length of the reference closest to a caption, the shorter of two at one distance, by the caption's
            length, (B, W), int16; the last column holds for W − 1 words and more.
        ends: number of n-grams of at most 1, …, N words, (B, N), int64.
    """

    keys: Integers
    limits: npt.NDArray[np.int16]
    closest: npt.NDArray[np.int16]
    ends: Integers


class ReferenceTable:
    """The clipped n-gram limits and the reference lengths of images, prepared once per image; safe for threads.

    An n-gram's key is a number of n digits in base V + 1, word w as the digit w + 1. So a key grows to that of the
    next n-gram by one multiplication, longer n-grams have larger keys, and every n-gram has a key of its own.

    Args:
        references: gives the reference captions of a row as word ids; negative for words outside the vocabulary.
        rows: number of images.
        vocab_size: V.
        orders: N, the longest n-gram.

    Raises:
        ValueError: keys of n-grams of N words do not fit 62 bits.
    """

    SENTINEL = 1 << 62  # larger than any key; follows the keys of a row

    def __init__(
        self, references: Callable[[int], Sequence[Sequence[int]]], rows: int, vocab_size: int, orders: int = 4
    ) -> None:
        self.orders, self.base = orders, vocab_size + 1
        if self.base**orders > 1 << 62:
            raise ValueError(
                f"BLEU-{orders} over {vocab_size} words does not fit 62 bits; use a vocabulary of at most "
                f"{int(2 ** (62 / orders)) - 1} words"
            )
        self._references, self._lock = references, threading.RLock()
        self._index = np.full(rows, -1, np.int32)  # of each row in the arrays below, −1 for rows not prepared
        self._prepared = 0
        size = max(min(rows * _NGRAMS_PER_IMAGE, _MAX_BYTES // _NGRAM_BYTES * 17 // 16), 1)
        self._keys = np.zeros(size, np.int64)  # of all rows in sequence, as their numbers differ widely
        self._limits = np.zeros(size, np.int16)
        self._begins = np.zeros(1, np.int64)  # of each row in the two
        self._used = 0
        self._set_width(1)
        self._closest = np.zeros((1, 1), np.int16)
        self._ends = np.zeros((1, orders), np.int64)

    def __getitem__(self, rows: Integers) -> ReferenceCounts:
        """N-grams and lengths of the references of ``rows``, (B,).

        Raises:
            ValueError: an image has no references with words.
        """
        with self._lock:
            self.prepare(rows)
            index = self._index.take(rows)  # take: twice as fast as [rows]
            ends, begins = self._ends.take(index, 0), self._begins.take(index)
            keys, limits, columns = self._key_rows[begins], self._limit_rows[begins], self._columns
            closest = self._closest.take(index, 0)
        beyond = columns >= ends[:, -1:]  # columns of the next image
        np.copyto(keys, self.SENTINEL, where=beyond)
        np.copyto(limits, 0, where=beyond)
        return ReferenceCounts(keys, limits, closest, ends)

    def prepare(self, rows: Integers) -> None:
        """Count the n-grams of ``rows`` (B,) now instead of when they are first read; raises the same."""
        with self._lock:
            index = self._index.take(rows)
            if index.size and index.min() < 0:
                if self._used * _NGRAM_BYTES > _MAX_BYTES:
                    self._index.fill(-1)
                    self._prepared = self._used = 0
                    index.fill(-1)
                for row in np.unique(rows[index < 0]).tolist():
                    self._prepare(row)

    def _prepare(self, row: int) -> None:
        references = self._references(row)
        if not any(len(reference) for reference in references):
            raise ValueError(f"BLEU needs at least one reference with words for row {row}, got {references!r}")
        keys, limits = self._count(references)
        lengths = np.unique([len(reference) for reference in references])
        caption_lengths = np.arange(lengths[-1] + 1)
        closest = lengths[np.abs(lengths - caption_lengths[:, None]).argmin(1)]  # argmin: the shorter of two
        index, begin, end = self._prepared, self._used, self._used + len(keys)
        self._reserve(index + 1, end, len(keys) + 1, len(closest))
        self._keys[begin:end], self._limits[begin:end] = keys, limits
        self._begins[index], self._used = begin, end
        self._closest[index, : len(closest)] = closest
        self._closest[index, len(closest) :] = lengths[-1]
        self._ends[index] = np.searchsorted(keys, self.base ** np.arange(1, self.orders + 1))
        self._index[row] = index
        self._prepared += 1

    def _count(self, references: Sequence[Sequence[int]]) -> tuple[Integers, Integers]:
        """Keys of the n-grams of references, ascending, and the most times that one reference has each."""
        digits = np.zeros((len(references), max(map(len, references))), np.int64)  # 0: no word, or an unknown one
        for index, reference in enumerate(references):
            digits[index, : len(reference)] = reference
            digits[index, : len(reference)] += 1
        grams, valid = digits, digits > 0
        keys, owners = [grams[valid]], [valid.nonzero()[0]]
        for order in range(2, self.orders + 1):
            grams = grams[:, :-1] * self.base + digits[:, order - 1 :]
            valid = valid[:, :-1] & (digits[:, order - 1 :] > 0)
            keys.append(grams[valid])
            owners.append(valid.nonzero()[0])
        key, owner = np.concatenate(keys), np.concatenate(owners)
        order_of = np.lexsort((owner, key))
        key, owner = key[order_of], owner[order_of]
        fresh = np.ones(len(key), bool)  # where a reference has an n-gram for the first time
        fresh[1:] = (key[1:] != key[:-1]) | (owner[1:] != owner[:-1])
        runs = fresh.nonzero()[0]
        counts = np.diff(runs, append=len(key))
        unique, first = np.unique(key[runs], return_index=True)
        return unique, np.maximum.reduceat(counts, first) if len(unique) else counts

    def _reserve(self, rows: int, keys: int, width: int, lengths: int) -> None:
        """Grow the arrays to these sizes; a row's last length is always that of its longest reference."""
        width = max(width, len(self._columns))
        if keys + width > len(self._keys):  # each row is read as far as the widest goes
            added = max(keys + width - len(self._keys), len(self._keys) // 4)
            self._keys, self._limits = np.pad(self._keys, (0, added)), np.pad(self._limits, (0, added))
            self._set_width(width)
        elif width > len(self._columns):
            self._set_width(width)
        added = max(rows - len(self._ends), len(self._ends) // 4) if rows > len(self._ends) else 0
        longer = max(lengths - self._closest.shape[1], 0)
        if added or longer:
            self._closest = np.pad(self._closest, ((0, added), (0, longer)), mode="edge")
            self._ends, self._begins = np.pad(self._ends, ((0, added), (0, 0))), np.pad(self._begins, (0, added))

    def _set_width(self, width: int) -> None:
        """View the flat arrays as rows that begin anywhere: copies of these cost a third of ``take``'s."""
        self._columns = np.arange(width)
        self._key_rows = sliding_window_view(self._keys, width)
        self._limit_rows = sliding_window_view(self._limits, width)

    def __getstate__(self) -> dict[str, object]:
        """Without the views, which a pickle would write out in full, and without unused space."""
        with self._lock:
            end = self._used + len(self._columns)
            state = {**vars(self), "_keys": self._keys[:end].copy(), "_limits": self._limits[:end].copy()}
        return {name: value for name, value in state.items() if name not in ("_lock", "_key_rows", "_limit_rows")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._set_width(len(self._columns))


def digest(dataset: CaptionDataset) -> int:
    """CRC-32 of all references."""
    checksum = 0
    for row in range(len(dataset)):
        checksum = zlib.crc32(repr(dataset.references(row)).encode(), checksum)
    return checksum


class SplitReferences:
    """The references of a split and their n-gram tables, which all that score captions of a process share.

    Args:
        source: a dataset, of which only the length and the references are read.
        vocabulary: of the captions to score.
    """

    def __init__(self, source: CaptionDataset, vocabulary: Vocabulary) -> None:
        self.source, self.vocabulary = source, vocabulary
        self._tables: dict[tuple[int, bool], ReferenceTable] = {}

    def references(self, row: int) -> list[list[str]]:
        """Reference captions of ``row`` as lists of words."""
        return self.source.references(row)

    def table(self, orders: int, end: bool) -> ReferenceTable:
        """The table of n-grams up to ``orders`` words, of references that end with ``<end>`` or without it."""
        if (orders, end) not in self._tables:
            encode = partial(_encode, self.source, self.vocabulary, [END_WORD] if end else [])
            self._tables[orders, end] = ReferenceTable(encode, len(self.source), len(self.vocabulary), orders)
        return self._tables[orders, end]


def _encode(source: CaptionDataset, vocabulary: Vocabulary, end: list[str], row: int) -> list[list[int]]:
    """References of a row as ids, −1 for words outside the vocabulary; not a closure, so that it can be pickled."""
    references = source.references(row)
    check_references(references)
    return [
        [-1 if word == vocabulary.unk else word for word in vocabulary.encode((*reference, *end))]
        for reference in references
    ]
