"""BLEU of a batch of finished captions equals nltk's of each, with and without ``<end>``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import sentence_bleu

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.metrics.batch_bleu import BatchBleu
from glimpse_env.metrics.bleu import order_weights
from glimpse_env.metrics.references import ReferenceTable, SplitReferences
from tests.conftest import examples
from tests.glimpse_env.metrics.test_bleu import nltk_says
from tests.glimpse_env.metrics.test_running_rewards import Images

T = 8
VOCABULARY = Vocabulary("abc")
words = st.text("abc?", max_size=9).map(list)  # ? is in no vocabulary
images = st.lists(st.lists(words, min_size=1, max_size=3).filter(any), min_size=2, max_size=2)
captions = st.lists(st.tuples(st.integers(0, 1), st.text("abc", max_size=T - 1), st.booleans()), min_size=1, max_size=5)


def encoded(vocabulary, batch):
    """Rows (B,), word ids (B, T) and lengths (B,) of pairs of row and words."""
    ids = np.full((len(batch), T), vocabulary.pad)
    for slot, (_, caption) in enumerate(batch):
        ids[slot, : len(caption)] = vocabulary.encode(caption)
    return np.array([row for row, _ in batch]), ids, np.array([len(caption) for _, caption in batch])


@pytest.mark.filterwarnings("ignore::UserWarning:nltk")
@pytest.mark.parametrize("smoothing", [0, 1, 2])
@examples(150)
@given(images, captions)
def test_every_order_is_nltks(smoothing, references, drawn):
    batch = [(row, [*letters, *["<end>"] * (ended or not letters)]) for row, letters, ended in drawn]
    table = SplitReferences(Images(references), VOCABULARY).table(4, end=True)
    scores = BatchBleu(table, VOCABULARY.end, smoothing, T).scores(*encoded(VOCABULARY, batch))
    for slot, (row, caption) in enumerate(batch):
        plain = [word for word in caption if word != "<end>"]
        ended = [[*reference, "<end>"] for reference in references[row]]
        for order in (1, 2, 3, 4):
            expected = [
                nltk_says(sentence_bleu, refs, words, order_weights(order), method=smoothing)
                for refs, words in ((ended, caption), (references[row], plain))
            ]
            np.testing.assert_allclose(scores[:, slot, order - 1], expected, atol=1e-12)


def test_no_word_precedes_a_caption_that_begins_within_a_reference():
    table = ReferenceTable([[[0, 1, 2, 3]]].__getitem__, 1, 4)  # word 0 is a word like any other
    counted = BatchBleu(table, 3, 0, T)
    with_end, _ = counted.scores(np.array([0]), np.array([[1, 2, 3, -1]]), np.array([3]))
    expected = [np.exp(1 - 4 / 3)] * 3 + [0]  # all n-grams up to three words, and none of four
    np.testing.assert_allclose(with_end[0], expected, atol=1e-12)


def test_a_caption_may_match_all_ngrams():
    table = ReferenceTable([[[0, 1, 3]]].__getitem__, 1, 4, orders=1)
    with_end, without = BatchBleu(table, 3, 0, T).scores(np.array([0]), np.array([[0, 1, 3]]), np.array([3]))
    assert (with_end.tolist(), without.tolist()) == ([[1.0]], [[1.0]])
