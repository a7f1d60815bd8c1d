"""BLEU, the reward of every caption and the figure of every table (Papineni et al. 2002).

The one place in the project that scores words against references. Today it asks nltk; it knows no models.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from nltk.translate import bleu_score

Words = Sequence[str]
BLEU4 = (0.25, 0.25, 0.25, 0.25)


def _smoothing(method: int) -> object:
    if method not in range(5):
        raise ValueError(f"smoothing must be one of 0, 1, 2, 3, 4 (nltk's methods), got {method!r}")
    return getattr(bleu_score.SmoothingFunction(), f"method{method}")


def _check_references(references: Sequence[Words]) -> None:
    if not references:
        raise ValueError("BLEU needs at least one reference for every caption, got none")


def order_weights(order: int) -> tuple[float, ...]:
    """Equal weights of the n-grams up to ``order``: BLEU-1 to BLEU-4.

    Raises:
        ValueError: order is not 1, 2, 3 or 4.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"BLEU order must be 1, 2, 3 or 4, got {order!r}")
    return (1 / order,) * order


def sentence_bleu(
    references: Sequence[Words], hypothesis: Words, weights: Sequence[float] = BLEU4, smoothing: int = 0
) -> float:
    """BLEU of one caption, in [0, 1]; equal to ``nltk.translate.bleu_score.sentence_bleu``.

    Args:
        references: the reference captions, as lists of words.
        hypothesis: the caption, as a list of words.
        weights: weight of each n-gram order, from 1.
        smoothing: 0 to 4, nltk's ``SmoothingFunction().method0`` to ``method4`` (Chen and Cherry 2014).

    Raises:
        ValueError: no references, or an unknown smoothing method.
    """
    return corpus_bleu([references], [hypothesis], weights, smoothing)


def corpus_bleu(
    references: Sequence[Sequence[Words]],
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
        ValueError: no captions, a caption without references, unequal numbers of both, or an unknown smoothing method.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} captions but references for {len(references)}; they must pair up")
    if not hypotheses:
        raise ValueError("BLEU needs at least one caption, got none")
    for one in references:
        _check_references(one)
    with warnings.catch_warnings():  # nltk warns of every n-gram order without a match; the score says it already
        warnings.simplefilter("ignore", UserWarning)
        return float(bleu_score.corpus_bleu(references, hypotheses, weights, _smoothing(smoothing)))
