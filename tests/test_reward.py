"""What a caption is worth: nltk's figure with <end> as a word, and rewards by name."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate import bleu_score

from glimpse_env.reward import BleuReward, make_reward, register_reward

REFERENCES = ["a small red circle is above a large blue ring".split(), "there is a ring".split()]
words = st.lists(st.sampled_from("a there is small red blue ring circle above".split()), max_size=12)


def nltk_bleu(references, hypothesis, order, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smooth = getattr(bleu_score.SmoothingFunction(), f"method{method}")
        return bleu_score.sentence_bleu(references, hypothesis, (1 / order,) * order, smooth)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(words, st.booleans())
def test_bleu_reward_is_nltks_method_1_with_end_as_a_word(caption, ended):
    references = [[*reference, "<end>"] for reference in REFERENCES]
    expected = nltk_bleu(references, [*caption, "<end>"] if ended else caption, 4, 1)
    assert BleuReward()(REFERENCES, caption, ended) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(words, st.booleans(), st.integers(1, 4), st.integers(0, 4))
def test_order_smoothing_and_end_are_options(caption, ended, order, method):
    reward = BleuReward(order, method, score_end=False)
    expected = nltk_bleu(REFERENCES, caption, order, method)
    assert reward(REFERENCES, caption, ended) == pytest.approx(expected, abs=1e-12)


def test_a_truncated_caption_wins_less():
    reward = BleuReward()
    assert reward(REFERENCES, REFERENCES[0], True) == pytest.approx(1.0)
    assert reward(REFERENCES, REFERENCES[0], False) < 1.0
    plain = BleuReward(score_end=False)
    assert plain(REFERENCES, REFERENCES[0], False) == plain(REFERENCES, REFERENCES[0], True) == pytest.approx(1.0)


def test_nothing_said_is_worth_nothing():
    assert BleuReward()(REFERENCES, [], False) == 0.0
    assert 0 <= BleuReward()(REFERENCES, [], True) < 1e-2


def test_the_reward_leaves_references_and_words_alone():
    references, caption = [list(reference) for reference in REFERENCES], ["a", "ring"]
    BleuReward()(references, caption, True)
    assert references == REFERENCES
    assert caption == ["a", "ring"]


@pytest.mark.parametrize("order", [0, 5])
def test_bad_orders_are_named(order):
    with pytest.raises(ValueError, match=f"order must be .*{order}"):
        BleuReward(order)


def test_rewards_are_found_by_name(monkeypatch):
    monkeypatch.setattr("glimpse_env.reward._REWARDS", {"bleu": BleuReward})
    assert isinstance(make_reward("bleu"), BleuReward)
    with pytest.raises(ValueError, match="unknown reward 'rouge'; registered are: bleu"):
        make_reward("rouge")

    class WordCount:
        def __call__(self, references, words, ended):
            return float(len(words))

    register_reward("words", WordCount)
    register_reward("words", WordCount)  # a module that is imported again
    assert make_reward("words")([["a"]], ["a", "b"], False) == 2.0
    with pytest.raises(ValueError, match="'words' is registered already"):
        register_reward("words", BleuReward)
    with pytest.raises(ValueError, match="'bleu' is registered already"):
        register_reward("bleu", WordCount)
