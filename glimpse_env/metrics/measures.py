"""Measures of finished captions by name: what ``info`` reports of an episode, and tables of a split.

All measures leave ``<end>`` out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from glimpse_env.core.arrays import Floats, Integers
from glimpse_env.metrics.batch_bleu import BatchBleu
from glimpse_env.metrics.bleu import corpus_bleu
from glimpse_env.metrics.edit_distance import corpus_error_rate, corpus_exact, error_rate, exact
from glimpse_env.metrics.ngrams import References, Words
from glimpse_env.metrics.references import SplitReferences


class Measure(Protocol):
    """A measure of finished captions.

    Attributes:
        name: one of ``MEASURES``.
        width: numbers per caption, K: 4 for ``bleu`` (BLEU-1 to BLEU-4), else 1.
    """

    name: str
    width: int

    def scores(self, rows: Integers, words: Integers, lengths: Integers) -> Floats:
        """Score captions.

        Args:
            rows: the image of each caption, (B,).
            words: ids, (B, T); ``<pad>`` after a caption's last word.
            lengths: words of each caption, ``<end>`` included, (B,), at least 1.

        Returns:
            (B, K).
        """
        ...


class BleuMeasure:
    """BLEU-1 to BLEU-4 with smoothing method 1.

    Args:
        batch: counts the captions; it can give the BLEU with ``<end>``, which is the reward, in the same count.
    """

    name, width = "bleu", 4

    def __init__(self, batch: BatchBleu) -> None:
        self.batch = batch

    def scores(self, rows: Integers, words: Integers, lengths: Integers) -> Floats:
        """BLEU of each caption, (B, 4), float64."""
        _, without_end = self.batch.scores(rows, words, lengths)
        scores: Floats = without_end
        return scores


class WordsMeasure:
    """A measure that is a function of references and words.

    Args:
        name: of the measure.
        function: scores a caption.
        references: of the split.
    """

    width = 1

    def __init__(self, name: str, function: Callable[[References, Words], float], references: SplitReferences) -> None:
        self.name, self._function, self._references = name, function, references

    def scores(self, rows: Integers, words: Integers, lengths: Integers) -> Floats:
        """The function's value of each caption, (B, 1), float64."""
        vocabulary = self._references.vocabulary
        captions = [
            vocabulary.decode(word for word in ids[:length] if word != vocabulary.end)
            for ids, length in zip(words.tolist(), lengths.tolist(), strict=True)
        ]
        references = map(self._references.references, rows.tolist())
        scores = [self._function(refs, caption) for refs, caption in zip(references, captions, strict=True)]
        return np.array(scores, np.float64).reshape(-1, 1)


_CAPTION_FUNCTIONS: dict[str, Callable[[References, Words], float]] = {
    "exact": exact,
    "cer": partial(error_rate, characters=True),
    "wer": error_rate,
}
_CORPUS_FUNCTIONS: dict[str, Callable[[Sequence[References], Sequence[Words]], float]] = {
    "bleu": corpus_bleu,
    "exact": corpus_exact,
    "cer": partial(corpus_error_rate, characters=True),
    "wer": corpus_error_rate,
}
MEASURES = tuple(_CORPUS_FUNCTIONS)


def _check_name(name: str) -> None:
    if name not in MEASURES:
        raise ValueError(f"unknown measure {name!r}; known are: {', '.join(MEASURES)}")


def measure_columns(names: Sequence[str]) -> dict[str, slice]:
    """The columns of each measure in an array (B, M) of all of them, in the order of ``names``.

    Raises:
        ValueError: no measure has that name.
    """
    columns, start = {}, 0
    for name in names:
        _check_name(name)
        columns[name] = slice(start, start := start + (BleuMeasure.width if name == "bleu" else WordsMeasure.width))
    return columns


def make_measure(name: str, references: SplitReferences, max_length: int) -> Measure:
    """Build a measure of the captions of a split.

    Args:
        name: one of ``MEASURES``.
        references: of the split.
        max_length: T, the most words of a caption.

    Raises:
        ValueError: no measure has that name.
    """
    _check_name(name)
    if name == "bleu":
        return BleuMeasure(BatchBleu(references.table(4, end=True), references.vocabulary.end, 1, max_length))
    return WordsMeasure(name, _CAPTION_FUNCTIONS[name], references)


def corpus_measure(name: str, references: Sequence[References], hypotheses: Sequence[Words]) -> float:
    """A measure of many captions: corpus BLEU-4, the share of exact captions, or the error rate of all together.

    Args:
        name: one of ``MEASURES``.
        references: the reference captions of every caption.
        hypotheses: the captions, without ``<end>``.

    Raises:
        ValueError: no measure has that name, no captions, unequal numbers of both, or references without words.
    """
    _check_name(name)
    return _CORPUS_FUNCTIONS[name](references, hypotheses)
