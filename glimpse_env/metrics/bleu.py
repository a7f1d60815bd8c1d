"""BLEU, the reward of every caption and the figure of every table (Papineni et al. 2002).

The one place in the project that scores n-grams: one caption, a corpus, or B captions that grow word by word. All three
count, and hand their counts to ``bleu``. It knows words and their ids, and no models.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glimpse_env.metrics.ngrams import References, Words, check_references, check_words, count_ngrams

BLEU4 = (0.25, 0.25, 0.25, 0.25)
SMOOTHINGS = range(5)


class BleuStatistics(NamedTuple):
    """The counts that BLEU is made of; those of a corpus are the sums over its captions.

    Attributes:
        matches: n-grams said that a reference has too, clipped to its count there, by order: (…, N), float64.
        totals: n-grams said, at least 1 a caption as nltk counts them, by order: (…, N), float64.
        length: words said, (…), float64.
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
        weights: weight of each n-gram order, from 1; as many as the statistics have orders.
        smoothing: what stands for the precision of an order without a match (Chen and Cherry 2014, numbered as nltk
            does). 0: nothing; 1: a tenth of a match; 2: a match more and an n-gram more in every order but the first;
            3: 1/2ᵏ of a match at the k-th such order; 4: that times ln(length)/5.
    """
    matches, totals, length, reference_length = statistics
    logs = _smoothed_logs(matches, totals, length, smoothing) * matches.new_tensor(weights)
    brevity = _log_brevity(reference_length, length)
    return torch.where(matches[..., 0] > 0, (logs.sum(-1) + brevity).exp(), 0.0)


def _log_brevity(reference_length: Tensor, length: Tensor) -> Tensor:
    """Logarithm of the brevity penalty of captions of ``length`` words, (…), float64."""
    return (1 - reference_length / length.clamp(min=1).double()).clamp_(max=0)


def _smoothed_logs(matches: Tensor, totals: Tensor, length: Tensor, smoothing: int) -> Tensor:
    """Logarithm of each order's precision, (…, N); what is left unsmoothed without a match has no say, as in nltk."""
    missing = matches == 0
    if smoothing == 2:
        more = torch.ones_like(matches)
        more[..., 0] = 0
        return ((matches + more) / (totals + more)).log().nan_to_num(0.0, 0.0, 0.0)
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
    """Refuse weights and smoothing methods that BLEU does not have.

    Raises:
        ValueError: no weights, a weight that is not a finite number, or an unknown smoothing method.
    """
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing must be one of 0, 1, 2, 3, 4 (nltk's methods), got {smoothing!r}")
    given = np.asarray(weights)
    if given.ndim != 1 or not given.size or given.dtype.kind not in "biuf" or not np.isfinite(given).all():
        raise ValueError(f"weights must be one finite number for each n-gram order, got {weights!r}")


def sentence_statistics(references: References, hypothesis: Words, orders: int = 4) -> BleuStatistics:
    """The counts of one caption.

    Args:
        references: the reference captions, as lists of words.
        hypothesis: the caption, as a list of words.
        orders: N, the longest n-gram.

    Raises:
        ValueError: strings stand where lists of words belong, or there are no references with words.
    """
    check_references(references)
    check_words(hypothesis)
    matches, length = [], len(hypothesis)
    for order in range(1, orders + 1):
        said = count_ngrams(hypothesis, order)
        limits: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            limits |= count_ngrams(reference, order)  # the larger count of each
        matches.append((said & limits).total())
    totals = [max(length - order + 1, 1) for order in range(1, orders + 1)]
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return BleuStatistics(*(torch.tensor(part, dtype=torch.float64) for part in (matches, totals, length, closest)))


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
    references: Sequence[References],
    hypotheses: Sequence[Words],
    weights: Sequence[float] = BLEU4,
    smoothing: int = 0,
) -> float:
    """Corpus BLEU with brevity penalty, in [0, 1]; equal to ``nltk.translate.bleu_score.corpus_bleu``.

    Args:
        references: for every caption its reference captions.
        hypotheses: the captions.
        weights: weight of each n-gram order, from 1.
        smoothing: 0 to 4, as in ``sentence_bleu``.

    Raises:
        ValueError: no captions, unequal numbers of both, or as ``sentence_bleu``.
    """
    check_scoring(weights, smoothing)
    statistics = corpus_statistics(references, hypotheses, len(weights))
    return float(bleu(BleuStatistics(*(part.sum(0) for part in statistics)), weights, smoothing))


def corpus_statistics(references: Sequence[References], hypotheses: Sequence[Words], orders: int = 4) -> BleuStatistics:
    """The counts of every caption, (captions, …); their sums over any choice of captions give its corpus BLEU.

    Raises:
        ValueError: no captions, unequal numbers of captions and references, or as ``sentence_statistics``.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} captions but references for {len(references)}; they must pair up")
    if not hypotheses:
        raise ValueError("BLEU needs at least one caption, got none")
    each = [sentence_statistics(refs, words, orders) for refs, words in zip(references, hypotheses, strict=True)]
    return BleuStatistics(*(torch.stack(parts) for parts in zip(*each, strict=True)))
