"""The reference captions of a split, and what BLEU needs of them, prepared once an image: n-gram limits and lengths.

Knows words and their ids. It does not know what is said, nor who asks.
"""

from __future__ import annotations

import zlib
from functools import partial
from typing import Protocol

from glimpse_env.core.vocabulary import END_WORD, Vocabulary
from glimpse_env.metrics.ngram_table import ReferenceTable
from glimpse_env.metrics.ngrams import check_references


class ReferenceSource(Protocol):
    """Where the reference captions of a row come from; every dataset is one."""

    def references(self, row: int) -> list[list[str]]:
        """Reference captions of ``row`` as lists of words."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...


def digest(source: ReferenceSource) -> int:
    """A number that changes, all but surely, when a reference does."""
    summed = 0
    for row in range(len(source)):
        summed = zlib.crc32(repr(source.references(row)).encode(), summed)
    return summed


class SplitReferences:
    """The references of a split for those who judge captions: their words, and tables shared by all who ask.

    Args:
        source: gives the words of a row.
        vocabulary: of the captions that are judged.
    """

    def __init__(self, source: ReferenceSource, vocabulary: Vocabulary) -> None:
        self.source, self.vocabulary = source, vocabulary
        self._tables: dict[tuple[int, bool], ReferenceTable] = {}

    def __len__(self) -> int:
        return len(self.source)

    def references(self, row: int) -> list[list[str]]:
        """Reference captions of ``row`` as lists of words."""
        return self.source.references(row)

    def table(self, orders: int, end: bool) -> ReferenceTable:
        """The table of n-grams up to ``orders`` words, of references that end with ``<end>`` or without it."""
        if (orders, end) not in self._tables:
            encoded = partial(_encoded, self.source, self.vocabulary, [END_WORD] if end else [])
            self._tables[orders, end] = ReferenceTable(encoded, len(self), len(self.vocabulary), orders)
        return self._tables[orders, end]


def _encoded(source: ReferenceSource, vocabulary: Vocabulary, end: list[str], row: int) -> list[list[int]]:
    """References of a row as ids, −1 for words that the captioner cannot say; no closure, so that it can be pickled."""
    written = source.references(row)
    check_references(written)
    return [
        [-1 if word == vocabulary.unk else word for word in vocabulary.encode((*reference, *end))]
        for reference in written
    ]
