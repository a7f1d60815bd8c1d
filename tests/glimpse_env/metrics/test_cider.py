"""CIDEr-D equals that of the COCO evaluation, caption by caption."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.datasets import make_dataset
from glimpse_env.datasets.shapes import Shapes
from glimpse_env.metrics.cider import DocumentFrequencies, cider_d
from tests.conftest import examples

words = st.lists(st.sampled_from("aabcde"), max_size=12)
references = st.lists(words, min_size=1, max_size=4).filter(any)
corpora = st.lists(st.tuples(references, words), min_size=1, max_size=5).filter(
    lambda pairs: any(map(any, pairs[0][0]))
)


def coco_scores(refs, hypotheses):
    """CIDEr-D of every caption from the COCO evaluation, document frequencies from the references of all."""
    coco = pytest.importorskip("pycocoevalcap.cider.cider")
    targets = {image: [" ".join(words) for words in captions] for image, captions in enumerate(refs)}
    return coco.Cider().compute_score(targets, {image: [" ".join(words)] for image, words in enumerate(hypotheses)})[1]


def our_scores(refs, hypotheses):
    frequencies = DocumentFrequencies.from_references(refs)
    return [cider_d(captions, words, frequencies) for captions, words in zip(refs, hypotheses, strict=True)]


@examples(600)
@given(corpora)
def test_cider_d_equals_coco(pairs):
    refs, hypotheses = [ref for ref, _ in pairs], [hypothesis for _, hypothesis in pairs]
    ours = our_scores(refs, hypotheses)
    assert ours == pytest.approx(coco_scores(refs, hypotheses).tolist(), abs=1e-10)
    assert all(0 <= score <= 10 + 1e-9 for score in ours)


def assert_equal_to_coco(refs):
    """With a caption of the image before as the hypothesis of each."""
    hypotheses = [refs[row - 1][0] for row in range(len(refs))]
    ours = our_scores(refs, hypotheses)
    assert ours == pytest.approx(coco_scores(refs, hypotheses).tolist(), abs=1e-10)
    assert len(set(ours)) > 10


def test_cider_d_equals_coco_on_shapes():
    assert_equal_to_coco([Shapes("val").references(row) for row in range(60)])


def test_cider_d_equals_coco_on_flickr8k(flickr8k_root):
    dataset = make_dataset("flickr8k", "val", flickr8k_root)
    assert_equal_to_coco([dataset.references(row) for row in range(len(dataset))])


def test_frequencies_count_images_not_captions():
    images = [[list("aab"), list("ab")], [list("ba")]]
    frequencies = DocumentFrequencies.from_references(iter(images))
    assert frequencies.images == 2
    expected = {"a": 2, "b": 2, "aa": 1, "ab": 1, "aab": 1, "ba": 1}
    assert frequencies.counts == Counter({tuple(gram): count for gram, count in expected.items()})
    assert DocumentFrequencies.from_references([]) == (0, Counter())


def test_frequencies_may_be_of_other_images():
    """The formula by hand: one bigram of two, words that every image has, and a caption shorter by two words."""
    frequencies = DocumentFrequencies(8, Counter({("a",): 8, ("b",): 8, ("a", "b"): 2}))
    refs, hypothesis = [list("abxy")], list("ab")
    idf, rare = math.log(8 / 2), math.log(8)
    cosine = idf * idf / (idf * math.sqrt(idf**2 + 2 * rare**2))  # of bigrams; no other order has a weight in common
    expected = 10 * cosine / 4 * math.exp(-((1 - 3) ** 2) / (2 * 6**2))
    assert cider_d(refs, hypothesis, frequencies) == pytest.approx(expected)


def test_no_words_and_words_that_every_image_has_score_nothing():
    images = [[list("abc")], [list("abd")]]
    frequencies = DocumentFrequencies.from_references(images)
    assert cider_d(images[0], [], frequencies) == 0.0
    assert cider_d(images[0], list("ab"), frequencies) == 0.0
    assert cider_d(images[0], list("abc"), frequencies) > 0.0
    assert cider_d([list("abc")], list("abc"), DocumentFrequencies.from_references([])) == 0.0
