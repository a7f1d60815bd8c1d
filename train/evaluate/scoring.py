"""Scores of a split's captions, their bootstrap intervals, and the paired bootstrap of two sets of captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from glimpse_env.datasets import find_world
from glimpse_env.metrics.bleu import BleuStatistics, bleu, corpus_statistics, order_weights
from glimpse_env.metrics.caption_metrics import find_metric
from glimpse_env.rollout.beam_search import Captioned

CorpusReferences = Sequence[Sequence[Sequence[str]]]  # of every image

# A caption whose last word is one of these is not complete (Rennie et al. 2017 and after).
DANGLING = frozenset(
    "a an the in for at of with before after on upon near to is are am and by from above below left".split()
)


class Scores(NamedTuple):
    """Scores of a set of captions."""

    bleu: list[float]  # corpus BLEU-1 to BLEU-4 with brevity penalty, in [0, 1]
    sentence_bleu: float  # mean sentence BLEU-4 (nltk's smoothing method 1), in [0, 1]
    length_ratio: float  # words per word of the closest references
    bad_endings: float  # share of captions without <end> or with a dangling last word
    distinct: float  # share of captions that no other image has
    num_images: int


def score(captions: Sequence[Captioned], references: CorpusReferences) -> Scores:
    """Score captions against the references of their images, in the same order."""
    words = [caption.words for caption in captions]
    statistics = corpus_statistics(references, words)
    counts = Counter(map(tuple, words))
    bad = [not caption.ended or not caption.words or caption.words[-1] in DANGLING for caption in captions]
    return Scores(
        bleu=corpus_bleus(statistics).tolist(),
        sentence_bleu=float(bleu(statistics, smoothing=1).mean()),
        length_ratio=float(statistics.length.sum() / statistics.reference_length.sum()),
        bad_endings=float(np.mean(bad)),
        distinct=sum(count == 1 for count in counts.values()) / max(len(words), 1),
        num_images=len(words),
    )


def world_metrics(dataset: str, captions: Sequence[Captioned], references: CorpusReferences) -> dict[str, float]:
    """The metrics of a world, other than BLEU, of captions of its images, by name."""
    words = [caption.words for caption in captions]
    return {name: find_metric(name).corpus(references, words) for name in find_world(dataset).metrics if name != "bleu"}


def corpus_bleus(statistics: BleuStatistics, counts: torch.Tensor | None = None) -> torch.Tensor:
    """Corpus BLEU-1 to BLEU-4, (…, 4), float64.

    Args:
        statistics: of N captions.
        counts: how often each caption is in the corpus, (…, N), float64; once by default.
    """
    if counts is None:
        counts = torch.ones(len(statistics.length), dtype=torch.float64)
    matches, totals = counts @ statistics.matches, counts @ statistics.totals
    lengths = counts @ statistics.length, counts @ statistics.reference_length
    scores = [
        bleu(BleuStatistics(matches[..., :order], totals[..., :order], *lengths), order_weights(order))
        for order in (1, 2, 3, 4)
    ]
    return torch.stack(scores, -1)


class PairedComparison(NamedTuple):
    """Corpus BLEU-4 of two sets of captions of the same images, by paired bootstrap (Koehn 2004)."""

    difference: float  # of the first over the second
    low: float  # lower end of the 95 % interval of the difference over resampled images
    high: float  # its upper end
    wins: float  # share of resamples in which the first is better, ties counting half
    resamples: int


class Interval(NamedTuple):
    """A score of the original images and seeds, and the 95 % interval of its bootstrap over both."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


Run = Sequence[Sequence[str]]  # captions of every image


def bootstrap(
    runs: Sequence[Run],
    references: CorpusReferences,
    rng: np.random.Generator,
    resamples: int = 2000,
    against: Sequence[Run] = (),
) -> npt.NDArray[np.float64]:
    """Mean corpus BLEU-4 of runs of several seeds, over resampled images (Koehn 2004) and seeds.

    Args:
        runs: captions of the same images, one entry per seed.
        references: of the images.
        rng: draws images and seeds.
        resamples: number of resamples.
        against: runs to compare with on the same resampled images; their mean is subtracted.

    Returns:
        (1 + resamples,): the first of the original images and seeds.
    """

    def resampled_counts(size: int) -> npt.NDArray[np.float64]:
        draws = rng.multinomial(size, np.full(size, 1 / size), size=resamples)
        return np.concatenate([np.ones((1, size)), draws])  # (1 + R, size), the first of the original

    counts = torch.from_numpy(resampled_counts(len(references)))

    def mean(seeds: Sequence[Run]) -> npt.NDArray[np.float64]:
        scores = np.array([corpus_bleus(corpus_statistics(references, run), counts)[:, 3].numpy() for run in seeds])
        shares = resampled_counts(len(seeds)) / len(seeds)  # (1 + R, seeds)
        return (shares * scores.T).sum(1)

    return mean(runs) - mean(against) if against else mean(runs)


def interquartile_mean(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean of the middle half of scores, (…, N) to (…), float64 (Agarwal et al. 2021, *rliable*).

    A quarter of the scores, rounded down, is left out at either end.
    """
    cut = scores.shape[-1] // 4
    middle = np.partition(scores, (cut, scores.shape[-1] - cut - 1), axis=-1)[..., cut : scores.shape[-1] - cut]
    return middle.mean(-1)


def bootstrap_iqm(
    scores: npt.NDArray[np.float64], rng: np.random.Generator, resamples: int = 2000
) -> npt.NDArray[np.float64]:
    """Interquartile mean over runs and images together, over resampled runs and images.

    Args:
        scores: sentence BLEU of every run and image, (R, N).
        rng: draws runs and images; all runs of a resample have the same images.
        resamples: number of resamples.

    Returns:
        (1 + resamples,): the first of the original runs and images.
    """
    runs, images = scores.shape
    means = [interquartile_mean(scores.reshape(1, -1))]
    chunk = max(1, 2_000_000 // scores.size)  # resamples at a time: some 16 MB
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        draws = rng.integers(runs, size=(count, runs, 1)), rng.integers(images, size=(count, 1, images))
        means.append(interquartile_mean(scores[draws].reshape(count, -1)))
    return np.concatenate(means)


def interval(resampled: npt.NDArray[np.float64]) -> Interval:
    """The score and interval of what ``bootstrap`` or ``bootstrap_iqm`` returns."""
    low, high = np.quantile(resampled[1:], [0.025, 0.975])
    return Interval(float(resampled[0]), float(low), float(high))


def compare(
    ours: Run, theirs: Run, references: CorpusReferences, rng: np.random.Generator, resamples: int = 2000
) -> PairedComparison:
    """Compare captions with others of the same images by a paired bootstrap over images."""
    differences = bootstrap([ours], references, rng, resamples, [theirs])
    wins = np.mean((differences[1:] > 0) + 0.5 * (differences[1:] == 0))
    return PairedComparison(*interval(differences), float(wins), resamples)


def sentence_scores(captions: Sequence[Captioned], references: CorpusReferences) -> list[float]:
    """Sentence BLEU-4 (method 1) of each caption."""
    statistics = corpus_statistics(references, [caption.words for caption in captions])
    return bleu(statistics, smoothing=1).tolist()
