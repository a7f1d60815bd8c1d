"""Edit distances equal the textbook recurrence; error rates and exact matches follow from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.metrics.bleu import sentence_bleu
from glimpse_env.metrics.cider import DocumentFrequencies, cider_d
from glimpse_env.metrics.edit_distance import corpus_error_rate, corpus_exact, edit_distance, error_rate, exact
from glimpse_env.metrics.rewards import make_reward
from glimpse_env.metrics.rouge import rouge_l
from tests.conftest import examples

FEW = examples(300)
sequences = st.lists(st.integers(0, 3), max_size=80) | st.text("ab", max_size=9)


def wagner_fischer(first, second):
    """The Levenshtein distance from its recurrence (Wagner and Fischer 1974)."""
    distances = [*range(len(second) + 1)]
    for row, item in enumerate(first, 1):
        above, distances = distances, [row]
        for column, match in enumerate(second, 1):
            change = above[column - 1] + (item != match)
            distances.append(min(above[column] + 1, distances[-1] + 1, change))
    return distances[-1]


@FEW
@given(sequences, sequences)
def test_edit_distance_equals_the_recurrence(first, second):
    assert edit_distance(first, second) == edit_distance(second, first) == wagner_fischer(first, second)


@pytest.mark.parametrize(
    ("references", "caption", "wer", "cer"),
    [
        (["a dog runs"], "a dog runs", 0, 0),
        (["a dog runs"], "a cat runs", 1 / 3, 3 / 10),
        (["a dog runs"], "", 1, 1),
        (["a dog"], "a dog runs fast", 2 / 2, 10 / 5),
        (["ab", "ab cd ef"], "ab cd", 1 / 3, 3 / 8),  # 1 edit of both; the longer reference has the smaller rate
        (["1 2 3 4"], "1 2 4", 1 / 4, 1 / 4),  # single characters: no spaces
        (["1 2 3 4"], "1 two 4", 2 / 4, 3 / 7),
        (["", "a dog"], "", 0, 0),
        (["", "a dog"], "cat", 1, 5 / 5),
    ],
)
def test_error_rates_by_hand(references, caption, wer, cer):
    references, caption = [reference.split() for reference in references], caption.split()
    assert error_rate(references, caption) == wer
    assert error_rate(references, caption, characters=True) == cer
    assert corpus_error_rate([references], [caption]) == wer
    assert exact(references, caption) == (wer == 0)
    for name, expected in (("wer", max(0, 1 - wer)), ("cer", max(0, 1 - cer))):
        reward = make_reward(name, None)
        assert reward(references, caption, True) == reward(references, caption, False) == expected
    assert make_reward("exact", None)(references, caption, True) == (wer == 0)
    assert make_reward("exact", None)(references, caption, False) == 0


def test_corpus_figures_weigh_captions_by_the_length_of_their_closest_references():
    references = [[list("ab"), list("axcd")], [list("abcdef")], [[], ["a"]]]  # the first two have one rate for "ax"
    hypotheses = [list("ax"), list("abcxyz"), []]
    assert corpus_error_rate(references, hypotheses) == (1 + 3 + 0) / (2 + 6 + 0)
    assert corpus_error_rate([refs[::-1] for refs in references], hypotheses) == 4 / 8
    assert corpus_exact(references, hypotheses) == 1 / 3


def test_a_caption_equals_a_reference_of_another_type():
    assert exact([("a", "dog")], ["a", "dog"]) == 1.0


def no_frequencies(references, words):
    return cider_d(references, words, DocumentFrequencies.from_references([]))


@pytest.mark.parametrize("score", [error_rate, exact, sentence_bleu, rouge_l, no_frequencies])
def test_what_cannot_be_scored_is_refused(score):
    for references, caption in (([], ["a"]), ([[]], ["a"]), (["a dog"], ["a"]), ([["a"]], "a")):
        with pytest.raises(ValueError, match=r"at least one reference with words|got the string"):
            score(references, caption)


@pytest.mark.parametrize("score", [corpus_error_rate, corpus_exact])
def test_a_corpus_without_captions_is_refused(score):
    with pytest.raises(ValueError, match="needs at least one caption, got none"):
        score([], [])
    with pytest.raises(ValueError, match="2 captions but references for 1"):
        score([[["a"]]], [["a"], ["b"]])
