"""From captions to figures, and whether one set of captions is better than another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu

from glimpse_env.metrics.bleu import corpus_statistics
from glimpse_env.rollout.beam_search import Captioned
from train.evaluate.scoring import (
    bootstrap,
    bootstrap_iqm,
    compare,
    corpus_bleus,
    interquartile_mean,
    interval,
    score,
    sentence_scores,
)

WORDS = "a dog cat runs on the grass near house tree".split()


def captioned(words: str, ended: bool = True) -> Captioned:
    return Captioned(0, words.split(), ended, np.ones((1, 1), np.float32), -1.0)


def random_corpus(size: int = 40) -> tuple[list[Captioned], list[list[list[str]]]]:
    rng = np.random.default_rng(0)

    def sentence() -> list[str]:
        return rng.choice(WORDS, size=rng.integers(3, 12)).tolist()

    captions, references = [], []
    for _ in range(size):
        refs = [sentence() for _ in range(rng.integers(1, 5))]
        words = refs[0][: rng.integers(1, 9)] + sentence()[:2]
        captions.append(captioned(" ".join(words), bool(rng.integers(2))))
        references.append(refs)
    return captions, references


def test_figures_are_nltks():
    captions, references = random_corpus()
    scores = score(captions, references)
    words = [caption.words for caption in captions]
    for order in (1, 2, 3, 4):
        expected = corpus_bleu(references, words, [1 / order] * order)
        assert scores.bleu[order - 1] == pytest.approx(expected, abs=1e-12)
    smooth = SmoothingFunction().method1
    expected_scores = [
        sentence_bleu(refs, caption_words, smoothing_function=smooth)
        for refs, caption_words in zip(references, words, strict=True)
    ]
    assert sentence_scores(captions, references) == pytest.approx(expected_scores, abs=1e-12)
    assert scores.sentence_bleu == pytest.approx(np.mean(expected_scores), abs=1e-12)
    assert scores.num_images == len(captions)
    assert 0 < scores.bleu[3] < scores.bleu[0] < 1


def test_captions_are_paired_with_the_references_of_their_images():
    captions = [captioned("a dog runs on the grass"), captioned("the cat near a tree")]
    references = [[caption.words] for caption in captions]
    assert score(captions, references).bleu == [1, 1, 1, 1]
    assert score(captions, references[::-1]).bleu[3] < 1e-6
    with pytest.raises(ValueError, match="2 captions but references for 1"):
        score(captions, references[:1])


@pytest.mark.parametrize(
    ("num_words", "lengths", "closest"),
    [(5, [5, 9], 5), (6, [5, 9], 5), (8, [5, 9], 9), (7, [5, 9], 5), (7, [9, 5], 5), (2, [9, 11], 9), (12, [9], 9)],
)
def test_length_ratio_is_to_the_closest_reference_the_shorter_of_two_alike(num_words, lengths, closest):
    scores = score([captioned("word " * num_words)], [[["word"] * length for length in lengths]])
    assert scores.length_ratio == pytest.approx(num_words / closest)


def test_length_ratio_is_over_the_corpus():
    captions = [captioned("a b c d"), captioned("a")]
    assert score(captions, [[["a"] * 2], [["a"] * 6]]).length_ratio == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("words", "ended", "bad"),
    [
        ("a dog runs", True, 0),
        ("a dog runs", False, 1),
        ("a dog runs on", True, 1),
        ("a dog next to the", True, 1),
        ("a circle is left of", True, 1),
        ("the", True, 1),
        ("", True, 1),
        ("the on a dog", True, 0),
    ],
)
def test_bad_endings(words, ended, bad):
    assert score([captioned(words, ended)], [[["a", "dog"]]]).bad_endings == bad


def test_shares_of_captions():
    captions = [captioned("a dog"), captioned("a dog"), captioned("a cat on"), captioned("a tree", False)]
    scores = score(captions, [[["a", "dog"]]] * 4)
    assert scores.bad_endings == 0.5
    assert scores.distinct == 0.5


# --- one set of captions against another ------------------------------------------------------------------------------


def spoken(size=15, seed=0):
    """Two sets of captions, made of parts of the references, and the references."""
    rng = np.random.default_rng(seed)
    references = [[rng.choice(WORDS, size=rng.integers(6, 12)).tolist() for _ in range(3)] for _ in range(size)]

    def make_captions(share):
        return [refs[0][: rng.integers(4, 7)] + ([] if rng.random() < share else ["the", "the"]) for refs in references]

    return make_captions(0.6), make_captions(0.4), references


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_corpus_bleus_of_counts_are_those_of_captions_that_stand_so_often(shape):
    ours, _, references = spoken()
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 3, (*shape, len(ours)))
    bleus = corpus_bleus(corpus_statistics(references, ours), torch.from_numpy(counts).double())
    assert bleus.shape == (*shape, 4)
    for index in np.ndindex(*shape):
        images = [image for image, count in enumerate(counts[index]) for _ in range(count)]
        for order in (1, 2, 3, 4):
            expected = corpus_bleu([references[i] for i in images], [ours[i] for i in images], [1 / order] * order)
            assert float(bleus[index][order - 1]) == pytest.approx(expected, abs=1e-12)


def test_the_bootstrap_over_seeds_draws_seeds_and_images():
    ours, theirs, references = spoken()

    def alone(words):
        return bootstrap([words], references, np.random.default_rng(5), 400)

    both = bootstrap([ours, theirs], references, np.random.default_rng(5), 400)
    assert both.shape == (401,)
    assert both[0] == pytest.approx((alone(ours)[0] + alone(theirs)[0]) / 2, abs=1e-12)
    pairs = np.stack([alone(ours), alone(theirs), (alone(ours) + alone(theirs)) / 2], 1)[1:]  # the same images
    which = np.abs(pairs - both[1:, None]).argmin(1)
    assert np.allclose(np.take_along_axis(pairs, which[:, None], 1)[:, 0], both[1:], atol=1e-12)
    assert np.bincount(which) / 400 == pytest.approx([0.25, 0.25, 0.5], abs=0.1)
    result = interval(both)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(both[1:], [0.025, 0.975])))
    same = bootstrap([ours, theirs], references, np.random.default_rng(5), 400, against=[ours, theirs])
    assert same[0] == 0


@pytest.mark.filterwarnings("ignore::UserWarning:nltk")  # of a resample without a match
def test_the_comparison_is_a_bootstrap_over_images():
    ours, theirs, references = spoken()
    comparison = compare(ours, theirs, references, np.random.default_rng(5), resamples=80)

    def bleu4(images, words):
        return corpus_bleu([references[i] for i in images], [words[i] for i in images])

    apart = []
    for counts in np.random.default_rng(5).multinomial(15, [1 / 15] * 15, size=80):
        images = [image for image, count in enumerate(counts) for _ in range(count)]
        apart.append(bleu4(images, ours) - bleu4(images, theirs))
    assert comparison.difference == pytest.approx(bleu4(range(15), ours) - bleu4(range(15), theirs), abs=1e-12)
    assert (comparison.low, comparison.high) == pytest.approx(tuple(np.percentile(apart, [2.5, 97.5])), abs=1e-12)
    assert comparison.wins == pytest.approx(
        np.mean([1.0 if difference > 0 else 0.5 if difference == 0 else 0.0 for difference in apart])
    )
    assert comparison.resamples == 80
    assert comparison.low < comparison.high
    assert 0 < comparison.wins < 1


def test_the_same_captions_are_neither_better_nor_worse():
    ours, _, references = spoken()
    assert compare(ours, ours, references, np.random.default_rng(0)) == (0, 0, 0, 0.5, 2000)


def test_clearly_better_captions_win_and_the_others_lose():
    _, theirs, references = spoken(40)
    copies = [refs[1] for refs in references]
    better = compare(copies, theirs, references, np.random.default_rng(0), 200)
    assert 0 < better.low < better.difference < better.high
    assert better.wins == 1
    worse = compare(theirs, copies, references, np.random.default_rng(0), 200)
    assert worse[:3] == pytest.approx((-better.difference, -better.high, -better.low))
    assert worse.wins == 0


def test_captions_of_other_images_are_not_compared():
    ours, theirs, references = spoken()
    with pytest.raises(ValueError, match="14 captions but references for 15"):
        compare(ours, theirs[:-1], references, np.random.default_rng(0))


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end():
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 4, 5, 6, 100])) == 3.5
    assert interquartile_mean(np.array([100.0, 2, 1])) == pytest.approx(103 / 3)  # a quarter of three is none
    scores = np.random.default_rng(0).random((5, 3, 41))
    expected = np.sort(scores, -1)[..., 10:31].mean(-1)
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_its_bootstrap_draws_runs_and_images():
    scores = np.random.default_rng(0).random((3, 40))
    resampled = bootstrap_iqm(scores, np.random.default_rng(1), resamples=500)
    assert resampled.shape == (501,)
    assert resampled[0] == pytest.approx(np.sort(scores.ravel())[30:90].mean())
    assert resampled[1:].mean() == pytest.approx(resampled[0], abs=0.03)
    apart = np.repeat([[0.1], [0.9]], 40, 1)  # nothing but the run matters
    assert {round(value, 6) for value in bootstrap_iqm(apart, np.random.default_rng(0), 200)} == {0.1, 0.5, 0.9}
    assert bootstrap_iqm(np.full((2, 5), 0.5), np.random.default_rng(0), 10).tolist() == [0.5] * 11
