"""Metrics by name equal the functions of words that they stand for, without ``<end>``."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.metrics.bleu import corpus_bleu, order_weights, sentence_bleu
from glimpse_env.metrics.caption_metrics import METRICS, corpus_metric, make_metric
from glimpse_env.metrics.edit_distance import corpus_error_rate, corpus_exact, error_rate, exact
from glimpse_env.metrics.references import SplitReferences
from tests.conftest import examples
from tests.glimpse_env.metrics.test_batch_bleu import T, encoded
from tests.glimpse_env.metrics.test_running_rewards import Images

VOCABULARY = Vocabulary(["a", "b", "cat"])
words = st.lists(st.sampled_from(["a", "b", "cat", "dog"]), max_size=9)  # dog is not in the vocabulary
images = st.lists(st.lists(words, min_size=1, max_size=3).filter(any), min_size=2, max_size=2)
captions = st.lists(
    st.tuples(st.integers(0, 1), st.lists(st.sampled_from(["a", "b", "cat"]), max_size=T - 1), st.booleans()),
    min_size=1,
    max_size=4,
)
FUNCTIONS = {
    "bleu": lambda refs, caption: [sentence_bleu(refs, caption, order_weights(order), 1) for order in (1, 2, 3, 4)],
    "exact": lambda refs, caption: [exact(refs, caption)],
    "cer": lambda refs, caption: [error_rate(refs, caption, characters=True)],
    "wer": lambda refs, caption: [error_rate(refs, caption)],
}


@pytest.mark.parametrize("name", METRICS)
@examples(100)
@given(images, captions)
def test_a_metric_equals_its_function(name, references, drawn):
    batch = [(row, [*caption, *["<end>"] * (ended or not caption)]) for row, caption, ended in drawn]
    metric = pickle.loads(pickle.dumps(make_metric(name, SplitReferences(Images(references), VOCABULARY), T)))
    scores = metric.scores(*encoded(VOCABULARY, batch))
    assert (metric.name, scores.shape, scores.dtype) == (name, (len(batch), metric.width), np.float64)
    expected = [FUNCTIONS[name](references[row], [*filter("<end>".__ne__, caption)]) for row, caption in batch]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_corpus_metrics_have_the_same_names():
    references, hypotheses = [[["a", "cat"]], [["a"], ["b"]]], [["a", "dog"], ["b"]]
    assert corpus_metric("bleu", references, hypotheses) == corpus_bleu(references, hypotheses)
    assert corpus_metric("exact", references, hypotheses) == corpus_exact(references, hypotheses) == 1 / 2
    assert corpus_metric("wer", references, hypotheses) == corpus_error_rate(references, hypotheses) == 1 / 3
    assert corpus_metric("cer", references, hypotheses) == 3 / 6
    for name in METRICS:
        with pytest.raises(ValueError, match="needs at least one caption"):
            corpus_metric(name, [], [])


def test_unknown_metrics_are_named_with_those_known():
    for score in (lambda: make_metric("ter", None, T), lambda: corpus_metric("ter", [], [])):
        with pytest.raises(ValueError, match=r"unknown metric 'ter'; known are: bleu, exact, cer, wer$"):
            score()
