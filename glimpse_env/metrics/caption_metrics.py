"""Metrics of finished captions by name: what ``info`` reports of an episode, and tables of a split.

All metrics leave ``<end>`` out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from glimpse_env.core.arrays import Floats, Integers
from glimpse_env.metrics.bleu import corpus_bleu
from glimpse_env.metrics.edit_distance import corpus_error_rate, corpus_exact, error_rate, exact
from glimpse_env.metrics.ngrams import References, Words
from glimpse_env.metrics.references import SplitReferences


class Metric(NamedTuple):
    """A metric of complete captions without ``<end>``: of one, or of a corpus, as one number."""

    title: str  # what the score of a corpus is called
    higher_is_better: bool
    width: int  # numbers a caption
    caption: Callable[[References, Words], float] | None  # None: BLEU is counted in arrays
    corpus: Callable[[Sequence[References], Sequence[Words]], float]


_METRICS = {
    "bleu": Metric("BLEU-4", True, 4, None, corpus_bleu),
    "exact": Metric("exact", True, 1, exact, corpus_exact),
    "cer": Metric("cer", False, 1, partial(error_rate, characters=True), partial(corpus_error_rate, characters=True)),
    "wer": Metric("wer", False, 1, error_rate, corpus_error_rate),
}
METRICS = tuple(_METRICS)


def find_metric(name: str) -> Metric:
    """A metric by name, one of ``METRICS``.

    Raises:
        ValueError: no metric has that name.
    """
    if name not in _METRICS:
        raise ValueError(f"unknown metric {name!r}; known are: {', '.join(METRICS)}")
    return _METRICS[name]


def metric_columns(names: Sequence[str]) -> dict[str, slice]:
    """The columns of each metric in an array (B, M) of all of them, in the order of ``names``.

    Raises:
        ValueError: no metric has that name.
    """
    start = 0
    return {name: slice(start, start := start + find_metric(name).width) for name in names}


def caption_scores(
    name: str, references: SplitReferences, rows: Integers, words: Integers, lengths: Integers
) -> Floats:
    """One of ``METRICS`` for each of B captions, (B, 1), float64; ``BatchBleu`` counts ``bleu``.

    Args:
        name: of the metric.
        references: of the split.
        rows: image of each caption, (B,).
        words: ids of its words, (B, T), ``<pad>`` after the last.
        lengths: its number of words, ``<end>`` included, (B,).

    Raises:
        ValueError: no metric has that name, or it is ``bleu``.
    """
    function = find_metric(name).caption
    if function is None:
        raise ValueError(f"{name!r} has several numbers a caption; count them with BatchBleu")
    vocabulary, scores = references.vocabulary, []
    for row, ids, length in zip(rows.tolist(), words.tolist(), lengths.tolist(), strict=True):
        caption = vocabulary.decode(word for word in ids[:length] if word != vocabulary.end)
        scores.append(function(references.references(row), caption))
    return np.array(scores, np.float64).reshape(-1, 1)
