"""From captions to figures: what the captions of a split are worth, and whether others are better.

Knows captions and references. It does not know agents, options or files; the commands beside it do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glimpse_env.metrics.bleu import BleuStatistics, bleu, corpus_statistics, order_weights
from glimpse_env.rollout.beam_search import Captioned

References = Sequence[Sequence[Sequence[str]]]  # of every image

# A caption that stops on one of these was cut off in the middle (Rennie et al. 2017 and after).
DANGLING = frozenset(
    "a an the in for at of with before after on upon near to is are am and by from above below left".split()
)


class Scores(NamedTuple):
    """What a set of captions is worth.

    Attributes:
        bleu: corpus BLEU-1 to BLEU-4 with brevity penalty, in [0, 1].
        sentence_bleu: mean sentence BLEU-4 (nltk's smoothing method 1), in [0, 1].
        length_ratio: words said per word of the closest references.
        bad_endings: share of captions without ``<end>`` or with a dangling last word.
        distinct: share of captions said for one image only.
        num_images: images captioned.
    """

    bleu: list[float]
    sentence_bleu: float
    length_ratio: float
    bad_endings: float
    distinct: float
    num_images: int


def score(captions: Sequence[Captioned], references: References) -> Scores:
    """Score captions against the references of their images, in the same order."""
    words = [caption.words for caption in captions]
    statistics = corpus_statistics(references, words)
    said: dict[tuple[str, ...], int] = {}
    for caption in words:
        said[tuple(caption)] = said.get(tuple(caption), 0) + 1
    bad = [not caption.ended or not caption.words or caption.words[-1] in DANGLING for caption in captions]
    return Scores(
        bleu=corpus_bleus(statistics).tolist(),
        sentence_bleu=float(bleu(statistics, smoothing=1).mean()),
        length_ratio=float(statistics.length.sum() / statistics.reference_length.sum()),
        bad_endings=float(np.mean(bad)),
        distinct=sum(count == 1 for count in said.values()) / max(len(words), 1),
        num_images=len(words),
    )


def corpus_bleus(statistics: BleuStatistics, counts: torch.Tensor | None = None) -> torch.Tensor:
    """Corpus BLEU-1 to BLEU-4, (…, 4), float64.

    Args:
        statistics: of N captions.
        counts: how often each caption stands in the corpus, (…, N), float64; once by default.
    """
    if counts is None:
        counts = torch.ones(len(statistics.length), dtype=torch.float64)
    matches, totals = counts @ statistics.matches, counts @ statistics.totals
    lengths = counts @ statistics.length, counts @ statistics.reference_length
    parts = [
        bleu(BleuStatistics(matches[..., :order], totals[..., :order], *lengths), order_weights(order))
        for order in (1, 2, 3, 4)
    ]
    return torch.stack(parts, -1)


class Comparison(NamedTuple):
    """Corpus BLEU-4 of two sets of captions of the same images, by paired bootstrap (Koehn 2004).

    Attributes:
        difference: of the first over the second.
        low: lower end of the 95 % interval of the difference over resampled images.
        high: its upper end.
        wins: share of resamples in which the first is better, ties counting half.
        resamples: their number.
    """

    difference: float
    low: float
    high: float
    wins: float
    resamples: int


class Interval(NamedTuple):
    """A figure and the 95 % interval of its bootstrap.

    Attributes:
        value: of the images and the seeds as they are.
        low: lower end of the interval over resampled images and seeds.
        high: its upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As a table shows it."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


Run = Sequence[Sequence[str]]  # captions of every image


def bootstrap(
    runs: Sequence[Run],
    references: References,
    rng: np.random.Generator,
    resamples: int = 2000,
    against: Sequence[Run] = (),
) -> npt.NDArray[np.float64]:
    """Mean corpus BLEU-4 of runs of several seeds, over resampled images (Koehn 2004) and seeds.

    Args:
        runs: captions of the same images, once a seed.
        references: of the images.
        rng: chooses images and seeds.
        resamples: how often.
        against: runs to compare with on the same resampled images; their mean is subtracted.

    Returns:
        (1 + resamples,): first of images and seeds as they are.
    """
    images = len(references)
    draws = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    counts = torch.from_numpy(np.concatenate([np.ones((1, images)), draws]))

    def mean(seeds: Sequence[Run]) -> npt.NDArray[np.float64]:
        scores = np.array([corpus_bleus(corpus_statistics(references, one), counts)[:, 3].numpy() for one in seeds])
        chosen = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=resamples)
        shares = np.concatenate([np.ones((1, len(seeds))), chosen]) / len(seeds)  # (1 + R, seeds)
        together: npt.NDArray[np.float64] = (shares * scores.T).sum(1)
        return together

    return mean(runs) - mean(against) if against else mean(runs)


def interquartile_mean(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean of the middle half of scores, (…, N) to (…), float64 (Agarwal et al. 2021, *rliable*).

    A quarter of the scores, rounded down, is left out at either end.
    """
    cut = scores.shape[-1] // 4
    middle = np.partition(scores, (cut, scores.shape[-1] - cut - 1), axis=-1)[..., cut : scores.shape[-1] - cut]
    means: npt.NDArray[np.float64] = middle.mean(-1)
    return means


def bootstrap_iqm(
    scores: npt.NDArray[np.float64], rng: np.random.Generator, resamples: int = 2000
) -> npt.NDArray[np.float64]:
    """Interquartile mean over runs and images together, over resampled runs and images.

    Args:
        scores: sentence BLEU of every run and image, (R, N).
        rng: chooses runs and images; every run is seen on the same images.
        resamples: how often.

    Returns:
        (1 + resamples,): first of runs and images as they are.
    """
    runs, images = scores.shape
    means = [interquartile_mean(scores.reshape(1, -1))]
    part = max(1, 2_000_000 // scores.size)  # resamples at a time: some 16 MB
    for start in range(0, resamples, part):
        count = min(part, resamples - start)
        chosen = rng.integers(runs, size=(count, runs, 1)), rng.integers(images, size=(count, 1, images))
        means.append(interquartile_mean(scores[chosen].reshape(count, -1)))
    return np.concatenate(means)


def interval(resampled: npt.NDArray[np.float64]) -> Interval:
    """What ``bootstrap`` or ``bootstrap_iqm`` found, as a figure with its interval."""
    low, high = np.quantile(resampled[1:], [0.025, 0.975])
    return Interval(float(resampled[0]), float(low), float(high))


def compare(
    ours: Run, theirs: Run, references: References, rng: np.random.Generator, resamples: int = 2000
) -> Comparison:
    """Whether captions are better than others of the same images, or only lucky in the choice of images."""
    apart = bootstrap([ours], references, rng, resamples, [theirs])
    wins = np.mean((apart[1:] > 0) + 0.5 * (apart[1:] == 0))
    return Comparison(*interval(apart), float(wins), resamples)


def sentence_scores(captions: Sequence[Captioned], references: References) -> list[float]:
    """Sentence BLEU-4 (method 1) of each caption."""
    scores: list[float] = bleu(corpus_statistics(references, [one.words for one in captions]), smoothing=1).tolist()
    return scores
