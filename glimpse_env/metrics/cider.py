"""CIDEr-D: similarity of the tf-idf weights of n-grams in a caption and its references (Vedantam et al. 2015)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from glimpse_env.metrics.ngrams import References, Words, check_caption, count_ngrams, ngrams

_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0  # words; width of the penalty on a difference in length
_SCALE = 10.0


class DocumentFrequencies(NamedTuple):
    """Number of images that have an n-gram in one of their references."""

    images: int
    counts: Counter[tuple[str, ...]]  # images with each n-gram, n from 1 to 4

    @classmethod
    def from_references(cls, references: Iterable[References]) -> DocumentFrequencies:
        """Count over the references of many images."""
        counts: Counter[tuple[str, ...]] = Counter()
        images = 0
        for images, captions in enumerate(references, 1):  # noqa: B007 (the last number is the count)
            counts.update({gram for words in captions for order in _ORDERS for gram in ngrams(words, order)})
        return cls(images, counts)


class _Vector(NamedTuple):
    """A caption's tf-idf weights by order, their norms, and its number of bigrams, which stands for its length."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int


def _vector(words: Words, frequencies: DocumentFrequencies) -> _Vector:
    log_images = math.log(max(frequencies.images, 1))
    weights = [
        {
            gram: count * (log_images - math.log(max(frequencies.counts[gram], 1)))
            for gram, count in count_ngrams(words, order).items()
        }
        for order in _ORDERS
    ]
    norms = [math.sqrt(sum(weight**2 for weight in grams.values())) for grams in weights]
    return _Vector(weights, norms, max(len(words) - 1, 0))


def cider_d(references: References, hypothesis: Words, frequencies: DocumentFrequencies) -> float:
    """CIDEr-D of one caption, in [0, 10]; equal to that of the COCO evaluation.

    ``frequencies`` are usually those of the training split.

    Raises:
        ValueError: a string is passed for a list of words, or no reference has words.
    """
    check_caption(references, hypothesis)
    ours = _vector(hypothesis, frequencies)
    total = 0.0
    for reference in references:
        theirs = _vector(reference, frequencies)
        similarity = sum(
            sum(min(weight, target.get(gram, 0.0)) * target.get(gram, 0.0) for gram, weight in source.items())
            / (norm * target_norm or 1.0)
            for source, norm, target, target_norm in zip(
                ours.weights, ours.norms, theirs.weights, theirs.norms, strict=True
            )
        )
        total += similarity / len(_ORDERS) * math.exp(-((ours.length - theirs.length) ** 2) / (2 * _SIGMA**2))
    return _SCALE * total / len(references)
