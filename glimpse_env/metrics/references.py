"""The reference captions of a split, as words and as n-gram tables for BLEU."""

from __future__ import annotations

import zlib
from functools import partial

from glimpse_env.core.vocabulary import END_WORD, Vocabulary
from glimpse_env.datasets import CaptionDataset
from glimpse_env.metrics.ngram_table import ReferenceTable
from glimpse_env.metrics.ngrams import check_references


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
