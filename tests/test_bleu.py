"""BLEU equals nltk's on any words, and Papineni's formula where no smoothing hides it."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate import bleu_score

from glimpse_env.bleu import corpus_bleu, order_weights, sentence_bleu

FEW = settings(max_examples=150, deadline=None, derandomize=True)

# Few words, so that n-grams meet and repeat.
words = st.lists(st.sampled_from("a dog runs".split()), max_size=9) | st.lists(
    st.sampled_from("a the dog cat runs on grass <end>".split()), max_size=14
)
references = st.lists(words, min_size=1, max_size=5)
weights = st.sampled_from([order_weights(n) for n in (1, 2, 3, 4)]) | st.lists(
    st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=4
).map(tuple)
smoothing = st.integers(0, 4)


def nltk_says(function, *arguments, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smooth = getattr(bleu_score.SmoothingFunction(), f"method{method}")
        return function(*arguments, smoothing_function=smooth)


def papineni(list_of_references, hypotheses, order):
    """Corpus BLEU from its definition (Papineni et al. 2002, §2.3), without smoothing."""
    log_precisions = []
    for n in range(1, order + 1):
        matches = total = 0
        for refs, hypothesis in zip(list_of_references, hypotheses, strict=True):
            grams = [tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1)]
            total += max(1, len(grams))  # nltk's reading of a caption too short for n-grams
            for gram, count in Counter(grams).items():
                most = max(sum(tuple(ref[i : i + n]) == gram for i in range(len(ref) - n + 1)) for ref in refs)
                matches += min(count, most)
        if matches == 0:
            return 0.0
        log_precisions.append(math.log(matches / total))
    said = sum(map(len, hypotheses))
    closest = sum(
        min((abs(len(ref) - len(hypothesis)), len(ref)) for ref in refs)[1]
        for refs, hypothesis in zip(list_of_references, hypotheses, strict=True)
    )
    return math.exp(sum(log_precisions) / order + min(0.0, 1 - closest / said))


@FEW
@given(references, words, weights, smoothing)
def test_sentence_bleu_equals_nltk(refs, hypothesis, weight, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = sentence_bleu(refs, hypothesis, weight, method)
    assert ours == pytest.approx(
        nltk_says(bleu_score.sentence_bleu, refs, hypothesis, weight, method=method), abs=1e-12
    )
    assert isinstance(ours, float)


@FEW
@given(st.lists(st.tuples(references, words), min_size=1, max_size=5), weights, smoothing)
def test_corpus_bleu_equals_nltk(pairs, weight, method):
    refs, hypotheses = [ref for ref, _ in pairs], [hypothesis for _, hypothesis in pairs]
    ours = corpus_bleu(refs, hypotheses, weight, method)
    assert ours == pytest.approx(nltk_says(bleu_score.corpus_bleu, refs, hypotheses, weight, method=method), abs=1e-12)


@FEW
@given(st.lists(st.tuples(references, words), min_size=1, max_size=4), st.sampled_from([1, 2, 3, 4]))
def test_unsmoothed_corpus_bleu_follows_the_paper(pairs, order):
    refs, hypotheses = [ref for ref, _ in pairs], [hypothesis for _, hypothesis in pairs]
    ours = corpus_bleu(refs, hypotheses, order_weights(order))
    assert ours == pytest.approx(papineni(refs, hypotheses, order), abs=1e-12)
    assert 0 <= ours <= 1 + 1e-12


@FEW
@given(references, words, smoothing, st.randoms(use_true_random=False))
def test_the_order_of_references_does_not_matter(refs, hypothesis, method, shuffler: random.Random):
    shuffled = shuffler.sample(refs, len(refs))
    assert sentence_bleu(shuffled, hypothesis, smoothing=method) == pytest.approx(
        sentence_bleu(refs, hypothesis, smoothing=method), abs=1e-12
    )


@pytest.mark.parametrize("method", range(5))
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_copy_of_a_reference_scores_one(method, order):
    reference = "a small red circle is above a large blue ring".split()
    other = "there is a dog".split()
    assert sentence_bleu([other, reference], reference, order_weights(order), method) == pytest.approx(1.0)


@pytest.mark.parametrize("method", range(5))
def test_a_caption_without_words_scores_nothing(method):
    assert sentence_bleu([["a", "dog"]], [], smoothing=method) == 0.0
    assert corpus_bleu([[["a", "dog"]], [["a"]]], [[], []], smoothing=method) == 0.0


def test_counts_are_clipped_as_in_the_paper():
    refs = ["the cat is on the mat".split(), "there is a cat on the mat".split()]
    assert sentence_bleu(refs, ["the"] * 7, order_weights(1)) == pytest.approx(2 / 7)


def test_a_short_caption_pays_the_brevity_penalty():
    reference = "a small red circle is above".split()
    assert sentence_bleu([reference], reference[:4], order_weights(1)) == pytest.approx(math.exp(1 - 6 / 4))
    longer_and_shorter = [list("abcdef"), list("ab")]  # 4 words are as far from 6 as from 2: the shorter counts
    assert sentence_bleu(longer_and_shorter, list("abcd"), order_weights(1)) == pytest.approx(1.0)


def test_default_is_bleu_4_without_smoothing():
    refs, hypothesis = ["a dog runs on the grass".split()], "a dog runs on grass".split()
    assert sentence_bleu(refs, hypothesis) == pytest.approx(papineni([refs], [hypothesis], 4))


def test_tuples_are_words_too():
    refs, hypothesis = [("a", "dog", "runs")], ("a", "dog")
    assert sentence_bleu(refs, hypothesis, smoothing=1) == sentence_bleu(
        [list(ref) for ref in refs], list(hypothesis), smoothing=1
    )


@pytest.mark.parametrize("method", [-1, 5, "1", None])
def test_unknown_smoothing_is_named(method):
    with pytest.raises(ValueError, match=f"smoothing must be one of .*{method!r}"):
        sentence_bleu([["a"]], ["a"], smoothing=method)


@pytest.mark.parametrize("order", [0, 5, 2.5, "4"])
def test_unknown_order_is_named(order):
    with pytest.raises(ValueError, match=f"order must be .*{order!r}"):
        order_weights(order)


def test_captions_and_references_must_be_there_and_pair_up():
    with pytest.raises(ValueError, match="at least one caption"):
        corpus_bleu([], [])
    with pytest.raises(ValueError, match="at least one reference"):
        sentence_bleu([], ["a"])
    with pytest.raises(ValueError, match="at least one reference"):
        corpus_bleu([[["a"]], []], [["a"], ["a"]])
    with pytest.raises(ValueError, match="2 captions but references for 1"):
        corpus_bleu([[["a"]]], [["a"], ["a"]])
