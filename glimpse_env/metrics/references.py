"""The reference captions of a split, as words and as n-gram tables for BLEU."""

from __future__ import annotations

import zlib
from functools import partial
from typing import Protocol

from glimpse_env.core.vocabulary import END_WORD, Vocabulary
from glimpse_env.metrics.ngram_table import ReferenceTable
from glimpse_env.metrics.ngrams import check_references


class ReferenceSource(Protocol):
    """A source of reference captions; every dataset is one."""

    def references(self, row: int) -> list[list[str]]:
        """Reference captions of ``row`` as lists of words."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...


def digest(source: ReferenceSource) -> int:
    """CRC-32 of all references."""
    checksum = 0
    for row in range(len(source)):
        checksum = zlib.crc32(repr(source.references(row)).encode(), checksum)
    return checksum


class SplitReferences:
    """The references of a split and their n-gram tables, which all that score captions of a process share.

    Args:
        source: gives the words of a row.
        vocabulary: of the captions to score.
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
            encode = partial(_encode, self.source, self.vocabulary, [END_WORD] if end else [])
            self._tables[orders, end] = ReferenceTable(encode, len(self), len(self.vocabulary), orders)
        return self._tables[orders, end]


def _encode(source: ReferenceSource, vocabulary: Vocabulary, end: list[str], row: int) -> list[list[int]]:
    """References of a row as ids, −1 for words outside the vocabulary; not a closure, so that it can be pickled."""
    references = source.references(row)
    check_references(references)
    return [
        [-1 if word == vocabulary.unk else word for word in vocabulary.encode((*reference, *end))]
        for reference in references
    ]
