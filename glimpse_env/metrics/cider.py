"""CIDEr-D: how much a caption sounds like its references, common n-grams counting little (Vedantam et al. 2015).

Knows words and how many images use an n-gram. It knows no models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from glimpse_env.metrics.ngrams import References, Words, check_references, check_words, count_ngrams, ngrams

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # words; width of the penalty on a difference in length
SCALE = 10.0


class DocumentFrequencies(NamedTuple):
    """How many images have an n-gram in one of their references.

    Attributes:
        images: number of images.
        counts: images with each n-gram, n from 1 to 4.
    """

    images: int
    counts: Counter[tuple[str, ...]]

    @classmethod
    def of(cls, references: Iterable[References]) -> DocumentFrequencies:
        """Count over the references of many images."""
        counts: Counter[tuple[str, ...]] = Counter()
        images = 0
        for images, captions in enumerate(references, 1):  # noqa: B007 (the last number is the count)
            grams: set[tuple[str, ...]] = set()
            for words in captions:
                grams.update(*(ngrams(words, order) for order in ORDERS))
            counts.update(grams)
        return cls(images, counts)


class _Vector(NamedTuple):
    """A caption's tf-idf weights by order, their lengths, and its number of bigrams, which stands for its length."""

    weights: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int


def _vector(words: Words, frequencies: DocumentFrequencies) -> _Vector:
    most = math.log(max(frequencies.images, 1))
    weights = [
        {
            gram: count * (most - math.log(max(frequencies.counts[gram], 1)))
            for gram, count in count_ngrams(words, order).items()
        }
        for order in ORDERS
    ]
    norms = [math.sqrt(sum(weight**2 for weight in one.values())) for one in weights]
    return _Vector(weights, norms, max(len(words) - 1, 0))


def cider_d(references: References, hypothesis: Words, frequencies: DocumentFrequencies) -> float:
    """CIDEr-D of one caption, in [0, 10]; equal to that of the COCO evaluation.

    Args:
        references: the reference captions, as lists of words.
        hypothesis: the caption, as a list of words.
        frequencies: document frequencies, usually of the training split.

    Raises:
        ValueError: strings stand where lists of words belong, or there are no references with words.
    """
    check_references(references)
    check_words(hypothesis)
    said = _vector(hypothesis, frequencies)
    total = 0.0
    for reference in references:
        told = _vector(reference, frequencies)
        alike = sum(
            sum(min(weight, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, weight in ours.items())
            / (norm * their_norm or 1.0)
            for ours, norm, theirs, their_norm in zip(said.weights, said.norms, told.weights, told.norms, strict=True)
        )
        total += alike / len(ORDERS) * math.exp(-((said.length - told.length) ** 2) / (2 * SIGMA**2))
    return SCALE * total / len(references)
