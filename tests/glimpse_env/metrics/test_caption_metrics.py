"""Metrics by name equal the functions of words that they stand for, without ``<end>``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.metrics.bleu import corpus_bleu
from glimpse_env.metrics.caption_metrics import METRICS, caption_scores, find_metric, metric_columns
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
    "exact": exact,
    "cer": lambda refs, caption: error_rate(refs, caption, characters=True),
    "wer": error_rate,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@examples(100)
@given(images, captions)
def test_a_metric_equals_its_function(name, references, drawn):
    batch = [(row, [*caption, *["<end>"] * (ended or not caption)]) for row, caption, ended in drawn]
    scores = caption_scores(name, SplitReferences(Images(references), VOCABULARY), *encoded(VOCABULARY, batch))
    assert (scores.shape, scores.dtype) == ((len(batch), 1), np.float64)
    expected = [[FUNCTIONS[name](references[row], [*filter("<end>".__ne__, caption)])] for row, caption in batch]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_metrics_have_their_columns_in_order():
    columns = metric_columns(("wer", "bleu", "exact"))
    assert columns == {"wer": slice(0, 1), "bleu": slice(1, 5), "exact": slice(5, 6)}
    assert set(FUNCTIONS) == {name for name in METRICS if name != "bleu"}
    with pytest.raises(ValueError, match="'bleu' has several numbers a caption; count them with BatchBleu"):
        caption_scores("bleu", None, None, None, None)


def test_a_metric_says_which_scores_are_better():
    assert {name: find_metric(name).higher_is_better for name in METRICS} == {
        "bleu": True,
        "exact": True,
        "cer": False,
        "wer": False,
    }
    assert [find_metric(name).title for name in METRICS] == ["BLEU-4", "exact", "cer", "wer"]


def test_corpus_metrics_have_the_same_names():
    references, hypotheses = [[["a", "cat"]], [["a"], ["b"]]], [["a", "dog"], ["b"]]
    assert find_metric("bleu").corpus(references, hypotheses) == corpus_bleu(references, hypotheses)
    assert find_metric("exact").corpus(references, hypotheses) == corpus_exact(references, hypotheses) == 1 / 2
    assert find_metric("wer").corpus(references, hypotheses) == corpus_error_rate(references, hypotheses) == 1 / 3
    assert find_metric("cer").corpus(references, hypotheses) == 3 / 6
    for name in METRICS:
        with pytest.raises(ValueError, match="needs at least one caption"):
            find_metric(name).corpus([], [])


def test_unknown_metrics_are_named_with_those_known():
    calls = (lambda: caption_scores("ter", None, None, None, None), lambda: find_metric("ter"))
    for score in (*calls, lambda: metric_columns(["bleu", "ter"])):
        with pytest.raises(ValueError, match=r"unknown metric 'ter'; known are: bleu, exact, cer, wer$"):
            score()
