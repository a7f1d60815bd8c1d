"""Metrics of finished captions by name: what ``info`` reports of an episode, and tables of a split.

All metrics leave ``<end>`` out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from glimpse_env.core.arrays import Floats, Integers
from glimpse_env.metrics.batch_bleu import BatchBleu
from glimpse_env.metrics.bleu import corpus_bleu
from glimpse_env.metrics.edit_distance import corpus_error_rate, corpus_exact, error_rate, exact
from glimpse_env.metrics.ngrams import References, Words
from glimpse_env.metrics.references import SplitReferences


class Metric(NamedTuple):
    """A metric of finished captions.

    Attributes:
        name: one of ``METRICS``.
        width: numbers per caption, K: 4 for ``bleu`` (BLEU-1 to BLEU-4, smoothing method 1), else 1.
        scores: function of the image of each caption, (B,), the ids of its words, (B, T), ``<pad>`` after the last, and
            its number of words, ``<end>`` included, (B,); returns (B, K), float64.
    """

    name: str
    width: int
    scores: Callable[[Integers, Integers, Integers], Floats]


def _score_bleu(batch: BatchBleu, rows: Integers, words: Integers, lengths: Integers) -> Floats:
    without_end: Floats = batch.scores(rows, words, lengths)[1]
    return without_end


def _score_words(
    function: Callable[[References, Words], float],
    references: SplitReferences,
    rows: Integers,
    words: Integers,
    lengths: Integers,
) -> Floats:
    """A function of references and words for each caption."""
    vocabulary, scores = references.vocabulary, []
    for row, ids, length in zip(rows.tolist(), words.tolist(), lengths.tolist(), strict=True):
        caption = vocabulary.decode(word for word in ids[:length] if word != vocabulary.end)
        scores.append(function(references.references(row), caption))
    return np.array(scores, np.float64).reshape(-1, 1)


class _Functions(NamedTuple):
    width: int
    caption: Callable[[References, Words], float] | None  # None: BLEU is counted in arrays
    corpus: Callable[[Sequence[References], Sequence[Words]], float]


_FUNCTIONS = {
    "bleu": _Functions(4, None, corpus_bleu),
    "exact": _Functions(1, exact, corpus_exact),
    "cer": _Functions(1, partial(error_rate, characters=True), partial(corpus_error_rate, characters=True)),
    "wer": _Functions(1, error_rate, corpus_error_rate),
}
METRICS = tuple(_FUNCTIONS)


def _find(name: str) -> _Functions:
    if name not in _FUNCTIONS:
        raise ValueError(f"unknown metric {name!r}; known are: {', '.join(METRICS)}")
    return _FUNCTIONS[name]


def metric_columns(names: Sequence[str]) -> dict[str, slice]:
    """The columns of each metric in an array (B, M) of all of them, in the order of ``names``.

    Raises:
        ValueError: no metric has that name.
    """
    start = 0
    return {name: slice(start, start := start + _find(name).width) for name in names}


def make_metric(name: str, references: SplitReferences, max_length: int) -> Metric:
    """Build a metric, one of ``METRICS``, of captions of a split of up to ``max_length`` words.

    Raises:
        ValueError: no metric has that name.
    """
    width, function, _ = _find(name)
    if function is None:
        batch = BatchBleu(references.table(4, end=True), references.vocabulary.end, 1, max_length)
        return Metric(name, width, partial(_score_bleu, batch))
    return Metric(name, width, partial(_score_words, function, references))


def corpus_metric(name: str, references: Sequence[References], hypotheses: Sequence[Words]) -> float:
    """One of ``METRICS`` of many captions, without ``<end>``.

    It is corpus BLEU-4, the share of exact captions, or the error rate of all captions together.

    Raises:
        ValueError: no metric has that name, no captions, unequal numbers of both, or references without words.
    """
    return _find(name).corpus(references, hypotheses)
