"""BLEU of a caption or a corpus (Papineni et al. 2002): n-gram counts, and the score that they give.

``incremental_bleu`` and ``batch_bleu`` count in other ways and use the same formula.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glimpse_env.metrics.ngrams import References, Words, check_caption, check_corpus, count_ngrams

BLEU4 = (0.25, 0.25, 0.25, 0.25)


class BleuStatistics(NamedTuple):
    """The counts that determine BLEU; those of a corpus are the sums over its captions.

    Attributes:
        matches: n-grams of the caption that a reference has too, clipped to its count there, by order: (…, N), float64.
        totals: n-grams of the caption, at least 1 as nltk counts them, by order: (…, N), float64.
        length: words of the caption, (…), float64.
        reference_length: words of the closest reference, the shorter of two at one distance, (…), float64.
    """

    matches: Tensor
    totals: Tensor
    length: Tensor
    reference_length: Tensor


def bleu(statistics: BleuStatistics, weights: Sequence[float] = BLEU4, smoothing: int = 0) -> Tensor:
    """BLEU of counts, (…), float64, in [0, 1].

    Args:
        statistics: of one caption, of many, or summed over a corpus.
        weights: one for each of the statistics' n-gram orders, from 1.
        smoothing: the precision of an order without a match (Chen and Cherry 2014, numbered as in nltk).
            0: none; 1: that of a tenth of a match; 2: one match and one n-gram are added to every order but the first;
            3: 1/2ᵏ of a match at the k-th such order; 4: that times ln(length)/5.
    """
    matches, totals, length, reference_length = statistics
    logs = log_precisions(matches, totals, length, smoothing) * matches.new_tensor(weights)
    brevity = log_brevity(reference_length, length)
    return torch.where(matches[..., 0] > 0, (logs.sum(-1) + brevity).exp(), 0.0)


def log_brevity(reference_length: Tensor, length: Tensor) -> Tensor:
    """Logarithm of the brevity penalty of captions of ``length`` words, (…), float64."""
    return (1 - reference_length / length.clamp(min=1).double()).clamp_(max=0)


def log_precisions(matches: Tensor, totals: Tensor, length: Tensor, smoothing: int) -> Tensor:
    """Logarithm of each order's smoothed precision, (…, N); 0 where the precision is 0 or infinite, as in nltk."""
    missing = matches == 0
    if smoothing == 2:
        added = torch.ones_like(matches)
        added[..., 0] = 0
        return ((matches + added) / (totals + added)).log().nan_to_num(0.0, 0.0, 0.0)
    if smoothing == 0:
        stand_in = totals * sys.float_info.min
    elif smoothing == 1:
        stand_in = torch.full_like(matches, 0.1)
    else:
        stand_in = torch.exp2(-missing.cumsum(-1).to(matches.dtype))
    if smoothing == 4:
        stand_in = stand_in * (length.log() / 5).clamp(min=0).unsqueeze(-1)  # not for a single word
    return (torch.where(missing, stand_in, matches) / totals).log().nan_to_num(0.0, 0.0, 0.0)


def order_weights(order: int) -> tuple[float, ...]:
    """Equal weights of the n-grams up to ``order``: BLEU-1 to BLEU-4.

    Raises:
        ValueError: order is not 1, 2, 3 or 4.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"BLEU order must be 1, 2, 3 or 4, got {order!r}")
    return (1 / order,) * order


def check_scoring(weights: Sequence[float], smoothing: int) -> None:
    """Check the arguments of ``bleu``.

    Raises:
        ValueError: no weights, a weight that is not a finite number, or an unknown smoothing method.
    """
    if smoothing not in range(5):
        raise ValueError(f"smoothing must be one of 0, 1, 2, 3, 4 (nltk's methods), got {smoothing!r}")
    array = np.asarray(weights)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"weights must be one finite number for each n-gram order, got {weights!r}")


def sentence_statistics(references: References, hypothesis: Words, orders: int = 4) -> BleuStatistics:
    """The counts of one caption, of n-grams of up to ``orders`` words.

    Raises:
        ValueError: a string is passed for a list of words, or no reference has words.
    """
    check_caption(references, hypothesis)
    matches, length = [], len(hypothesis)
    for order in range(1, orders + 1):
        limits: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            limits |= count_ngrams(reference, order)  # the larger count of each
        matches.append((count_ngrams(hypothesis, order) & limits).total())
    totals = [max(length - order + 1, 1) for order in range(1, orders + 1)]
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return BleuStatistics(*(torch.tensor(count, dtype=torch.float64) for count in (matches, totals, length, closest)))


def sentence_bleu(
    references: References, hypothesis: Words, weights: Sequence[float] = BLEU4, smoothing: int = 0
) -> float:
    """BLEU of one caption, in [0, 1]; equal to ``nltk.translate.bleu_score.sentence_bleu``.

    Args:
        references: the reference captions, as lists of words.
        hypothesis: the caption, as a list of words.
        weights: weight of each n-gram order, from 1.
        smoothing: 0 to 4, nltk's ``SmoothingFunction().method0`` to ``method4`` (Chen and Cherry 2014).

    Raises:
        ValueError: no references, strings instead of lists of words, bad weights, or an unknown smoothing method.
    """
    return corpus_bleu([references], [hypothesis], weights, smoothing)


def corpus_bleu(
    references: Sequence[References], hypotheses: Sequence[Words], weights: Sequence[float] = BLEU4, smoothing: int = 0
) -> float:
    """Corpus BLEU with brevity penalty, in [0, 1]; equal to ``nltk.translate.bleu_score.corpus_bleu``.

    ``weights`` and ``smoothing`` are those of ``sentence_bleu``.

    Raises:
        ValueError: no captions, unequal numbers of both, or as ``sentence_bleu``.
    """
    check_scoring(weights, smoothing)
    statistics = corpus_statistics(references, hypotheses, len(weights))
    return float(bleu(BleuStatistics(*(counts.sum(0) for counts in statistics)), weights, smoothing))


def corpus_statistics(references: Sequence[References], hypotheses: Sequence[Words], orders: int = 4) -> BleuStatistics:
    """The counts of every caption, (captions, …); the sums over any selection of captions give its corpus BLEU.

    Raises:
        ValueError: no captions, unequal numbers of captions and references, or as ``sentence_statistics``.
    """
    check_corpus("BLEU", references, hypotheses)
    captions = [sentence_statistics(refs, words, orders) for refs, words in zip(references, hypotheses, strict=True)]
    return BleuStatistics(*map(torch.stack, zip(*captions, strict=True)))
