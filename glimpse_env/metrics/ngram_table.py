"""Reference n-grams as numbers, prepared once per image."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Kind = TypeVar("Kind", bound=np.generic)


class Prepared(NamedTuple):
    """What is known of the references of B images.

    Attributes:
        keys: of their n-grams, ascending, then ``ReferenceTable.LAST``: (B, G), int64.
        limits: how often a reference has each n-gram, at most, (B, G), int16.
        closest: words of the reference closest to a caption, the shorter of two at one distance, by the caption's
            length, (B, W), int16; the last holds from W − 1 words.
        ends: how many n-grams have at most 1, …, N words, (B, N), int64.
    """

    keys: npt.NDArray[np.int64]
    limits: npt.NDArray[np.int16]
    closest: npt.NDArray[np.int16]
    ends: npt.NDArray[np.int64]


KEPT_BYTES = 1 << 28  # of n-grams; when they are more, as of a million images, all are forgotten and prepared anew


NGRAM_BYTES = np.dtype(np.int64).itemsize + np.dtype(np.int16).itemsize


USUAL = 256  # n-grams of an image, at most, as a rule: arrays that need not grow are never held twice


class ReferenceTable:
    """The clipped n-gram limits and the reference lengths of images, prepared once an image.

    All environments of a process on the same images share one; threads take turns.

    An n-gram is written as a number of n digits in base V + 1, word w as the digit w + 1. So an n-gram's key grows to
    that of the next by one multiplication, longer n-grams have larger keys, and no two n-grams have the same.

    Args:
        references: gives the reference captions of a row as word ids; negative for words that no caption can say.
        rows: number of images.
        vocab_size: V.
        orders: N, the longest n-gram.

    Raises:
        ValueError: n-grams of so many words are more than fit 62 bits.
    """

    LAST = 1 << 62  # stands after a row's n-grams; none has this key

    def __init__(
        self, references: Callable[[int], Sequence[Sequence[int]]], rows: int, vocab_size: int, orders: int = 4
    ) -> None:
        self.vocab_size, self.orders, self.base = vocab_size, orders, vocab_size + 1
        if self.base**orders > 1 << 62:
            raise ValueError(
                f"BLEU-{orders} over {vocab_size} words does not fit 62 bits; use a vocabulary of at most "
                f"{int(2 ** (62 / orders)) - 1} words"
            )
        self._references, self._turn = references, threading.RLock()
        self._place = np.full(rows, -1, np.int32)  # of each row in the arrays below, −1 for rows not asked for yet
        self._prepared = 0
        room = max(min(rows * USUAL, KEPT_BYTES // NGRAM_BYTES * 17 // 16), 1)  # the system gives memory as it is used
        self._keys = np.zeros(room, np.int64)  # of all rows one after the other: some have many times others'
        self._limits = np.zeros(room, np.int16)
        self._begins = np.zeros(1, np.int64)  # of each row in them
        self._used = 0
        self._widen(1)
        self._closest = np.zeros((1, 1), np.int16)
        self._ends = np.zeros((1, orders), np.int64)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Prepared:
        """What is known of the references of ``rows``, (B,).

        Raises:
            ValueError: an image has no references with words.
        """
        with self._turn:
            self.prepare(rows)
            places = self._place.take(rows)  # take: twice as fast as [places]
            ends, begins = self._ends.take(places, 0), self._begins.take(places)
            keys, limits, across = self._key_rows[begins], self._limit_rows[begins], self._across
            closest = self._closest.take(places, 0)
        beyond = across >= ends[:, -1:]  # what belongs to the next image
        np.copyto(keys, self.LAST, where=beyond)
        np.copyto(limits, 0, where=beyond)
        return Prepared(keys, limits, closest, ends)

    def prepare(self, rows: npt.NDArray[np.int64]) -> None:
        """Let the references of ``rows`` (B,) be known from now on.

        Raises:
            ValueError: an image has no references with words.
        """
        with self._turn:
            places = self._place.take(rows)
            if places.size and places.min() < 0:
                if self._used * NGRAM_BYTES > KEPT_BYTES:
                    self._place.fill(-1)
                    self._prepared = self._used = 0
                    places.fill(-1)
                for row in np.unique(rows[places < 0]).tolist():
                    self._prepare(row)

    def _prepare(self, row: int) -> None:
        references = self._references(row)
        if not any(len(reference) for reference in references):
            raise ValueError(f"BLEU needs at least one reference with words for row {row}, got {references!r}")
        keys, limits = self._limits_of(references)
        lengths = np.unique([len(reference) for reference in references])
        said = np.arange(lengths[-1] + 1)
        closest = lengths[np.abs(lengths - said[:, None]).argmin(1)]  # the first of two at one distance: the shorter
        place, begin, end = self._prepared, self._used, self._used + len(keys)
        self._make_room(place + 1, end, len(keys) + 1, len(said))
        self._keys[begin:end], self._limits[begin:end] = keys, limits
        self._begins[place], self._used = begin, end
        self._closest[place, : len(said)] = closest
        self._closest[place, len(said) :] = lengths[-1]
        self._ends[place] = np.searchsorted(keys, self.base ** np.arange(1, self.orders + 1))
        self._place[row] = place
        self._prepared += 1

    def _limits_of(self, references: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Keys of the n-grams of references, ascending, and how often one reference has each at most."""
        digits = np.zeros((len(references), max(map(len, references))), np.int64)  # 0: no word, or none to be said
        for place, reference in enumerate(references):
            digits[place, : len(reference)] = reference
            digits[place, : len(reference)] += 1
        grams, sayable = digits, digits > 0
        keys, owners = [grams[sayable]], [sayable.nonzero()[0]]
        for order in range(2, self.orders + 1):
            grams = grams[:, :-1] * self.base + digits[:, order - 1 :]
            sayable = sayable[:, :-1] & (digits[:, order - 1 :] > 0)
            keys.append(grams[sayable])
            owners.append(sayable.nonzero()[0])
        key, owner = np.concatenate(keys), np.concatenate(owners)
        order_of = np.lexsort((owner, key))
        key, owner = key[order_of], owner[order_of]
        fresh = np.ones(len(key), bool)  # where a reference has an n-gram for the first time
        fresh[1:] = (key[1:] != key[:-1]) | (owner[1:] != owner[:-1])
        runs = fresh.nonzero()[0]
        counts = np.diff(runs, append=len(key))
        known, first = np.unique(key[runs], return_index=True)
        return known, np.maximum.reduceat(counts, first) if len(known) else counts

    def _make_room(self, rows: int, keys: int, width: int, lengths: int) -> None:
        """Let the arrays hold so many; a row's last length is always that of its longest reference."""
        width = max(width, len(self._across))
        if keys + width > len(self._keys):  # a row is read as far as the widest goes
            more = max(keys + width - len(self._keys), len(self._keys) // 4)
            self._keys, self._limits = _longer(self._keys, more), _longer(self._limits, more)
            self._widen(width)
        elif width > len(self._across):
            self._widen(width)
        more = max(rows - len(self._ends), len(self._ends) // 4) if rows > len(self._ends) else 0
        longer = max(lengths - self._closest.shape[1], 0)
        if more or longer:
            self._closest = np.pad(self._closest, ((0, more), (0, longer)), mode="edge")
        if more:
            self._ends, self._begins = _longer(self._ends, more), _longer(self._begins, more)

    def _widen(self, width: int) -> None:
        """Look at the flat arrays as rows that begin anywhere: copies of these cost a third of ``take``'s."""
        self._across = np.arange(width)
        self._key_rows = sliding_window_view(self._keys, width)
        self._limit_rows = sliding_window_view(self._limits, width)

    def __getstate__(self) -> dict[str, object]:
        """Without the views, which a pickle would write out in full, and without room that is not used."""
        with self._turn:
            made_anew = ("_turn", "_key_rows", "_limit_rows")
            state = {name: value for name, value in self.__dict__.items() if name not in made_anew}
            end = self._used + len(self._across)
            return {**state, "_keys": self._keys[:end].copy(), "_limits": self._limits[:end].copy()}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Look at the arrays anew."""
        self.__dict__.update(state)
        self._turn = threading.RLock()
        self._widen(len(self._across))


def _longer(array: npt.NDArray[Kind], more: int) -> npt.NDArray[Kind]:
    """An array with room for more rows."""
    grown = np.zeros((len(array) + more, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown
