"""ROUGE-L equals that of the COCO evaluation, and the longest common subsequence that of trying all."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.datasets import make_dataset
from glimpse_env.datasets.shapes import Shapes
from glimpse_env.metrics.rouge import longest_common_subsequence, rouge_l
from tests.conftest import examples

words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)
short = st.lists(st.sampled_from("abc"), max_size=7)


def subsequences(words):
    return {subset for size in range(len(words) + 1) for subset in itertools.combinations(words, size)}


def coco_scores(refs, hypotheses):
    """ROUGE-L of every caption from the COCO evaluation, which takes captions of at least a word."""
    coco = pytest.importorskip("pycocoevalcap.rouge.rouge")
    targets = {image: [" ".join(words) for words in captions] for image, captions in enumerate(refs)}
    return coco.Rouge().compute_score(targets, {image: [" ".join(words)] for image, words in enumerate(hypotheses)})[1]


@examples(300)
@given(short, short)
def test_longest_common_subsequence_is_the_longest_of_all(first, second):
    longest = max(map(len, subsequences(first) & subsequences(second)))
    assert longest_common_subsequence(first, second) == longest_common_subsequence(second, first) == longest


@examples(500)
@given(st.lists(words, min_size=1, max_size=5), words)
def test_rouge_l_equals_coco(refs, hypothesis):
    assert rouge_l(refs, hypothesis) == pytest.approx(coco_scores([refs], [hypothesis])[0], abs=1e-12)


def assert_equal_to_coco(refs):
    """With a caption of the image before as the hypothesis of each."""
    hypotheses = [refs[row - 1][0] for row in range(len(refs))]
    ours = [rouge_l(*pair) for pair in zip(refs, hypotheses, strict=True)]
    assert ours == pytest.approx(coco_scores(refs, hypotheses).tolist(), abs=1e-12)
    assert len(set(ours)) > 10


def test_rouge_l_equals_coco_on_shapes():
    assert_equal_to_coco([Shapes("val").references(row) for row in range(60)])


def test_rouge_l_equals_coco_on_flickr8k(flickr8k_root):
    dataset = make_dataset("flickr8k", "val", flickr8k_root)
    assert_equal_to_coco([dataset.references(row) for row in range(len(dataset))])


def test_precision_and_recall_may_be_of_different_references():
    refs, hypothesis = [list("abxyz"), list("a")], list("ab")
    precision, recall = 2 / 2, 1 / 1  # of the first, and of the second
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert rouge_l(refs, hypothesis) == pytest.approx(expected)


def test_nothing_in_common_scores_nothing():
    assert rouge_l([["a", "dog"]], []) == 0.0
    assert rouge_l([["a", "dog"]], ["the", "cat"]) == 0.0
    assert rouge_l([[], ["a"]], ["a"]) == pytest.approx(1.0)
