"""Rewards equal nltk's and COCO's scores with <end> as a word; by name, in sums and in episodes."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import sentence_bleu

import glimpse_env  # noqa: F401 (registers the environments)
from glimpse_env.datasets.shapes import Shapes
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.metrics.bleu import order_weights
from glimpse_env.metrics.rewards import BleuReward, CiderReward, RougeReward, WeightedSum, make_reward, register_reward
from tests.conftest import examples
from tests.glimpse_env.metrics.test_bleu import nltk_says

REFERENCES = ["a small red circle is above a large blue ring".split(), "there is a ring".split()]
words = st.lists(st.sampled_from("a there is small red blue ring circle above".split()), max_size=12)


class FewShapes(Shapes):
    """The first scenes of a split: enough for document frequencies."""

    def __len__(self):
        return 40


@pytest.fixture(scope="module")
def cider():
    return CiderReward(FewShapes("train"))


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Unregister the rewards of a test after it."""
    monkeypatch.setattr("glimpse_env.metrics.rewards._CUSTOM", {})


def few_shapes():
    return FewShapes("train")


def no_training():
    raise AssertionError("BLEU and ROUGE-L learn nothing from the training split")


def word_count(references, words, ended):
    return float(len(words))


# --- BLEU -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning:nltk")
@examples(300)
@given(words, st.booleans(), st.integers(1, 4), st.integers(0, 4), st.booleans())
def test_order_smoothing_and_end_are_options(caption, ended, order, method, score_end):
    reward = BleuReward(order, method, score_end)
    end = ["<end>"] if score_end else []
    references = [[*reference, *end] for reference in REFERENCES]
    expected = nltk_says(
        sentence_bleu, references, [*caption, *(end if ended else [])], order_weights(order), method=method
    )
    assert reward(REFERENCES, caption, ended) == pytest.approx(expected, abs=1e-12)


def test_the_bleu_reward_is_bleu_4_with_method_1_and_end_by_default():
    assert vars(BleuReward()) == vars(BleuReward(4, 1, True))


def test_a_caption_without_words_scores_nothing(cider):
    for reward in (BleuReward(), RougeReward(), cider):
        assert reward(REFERENCES, [], False) == 0.0
    assert 0 <= BleuReward()(REFERENCES, [], True) < 1e-2


@pytest.mark.parametrize("order", [0, 5])
def test_bad_orders_are_named(order):
    with pytest.raises(ValueError, match=f"order must be .*{order}"):
        BleuReward(order)


@pytest.mark.parametrize("method", [-1, 5, "1"])
def test_bad_smoothing_is_named_before_a_caption_is_scored(method):
    with pytest.raises(ValueError, match=f"smoothing must be .*{method!r}"):
        BleuReward(smoothing=method)


# --- CIDEr-D and ROUGE-L ----------------------------------------------------------------------------------------------


def with_end(captions):
    return [" ".join([*words, "<end>"]) for words in captions]


def test_cider_and_rouge_rewards_are_cocos_with_end_as_a_word(cider):
    coco_cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    coco_rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    dataset = few_shapes()
    rows = range(len(dataset))
    captions = [dataset.references(row - 1 if row else len(dataset) - 1)[-1] for row in rows]  # of other scenes
    targets = {row: with_end(dataset.references(row)) for row in rows}
    for ended in (True, False):
        results = {row: with_end([captions[row]]) if ended else [" ".join(captions[row])] for row in rows}
        for reward, coco in ((cider, coco_cider), (RougeReward(), coco_rouge)):
            ours = [reward(dataset.references(row), captions[row], ended) for row in rows]
            assert ours == pytest.approx(coco.compute_score(targets, results)[1].tolist(), abs=1e-10)
            assert len({round(score, 6) for score in ours}) > 10


# --- any of them ------------------------------------------------------------------------------------------------------


def test_a_truncated_caption_scores_less(cider):
    for reward in (BleuReward(), RougeReward(), cider):
        assert reward(REFERENCES, REFERENCES[0], False) < reward(REFERENCES, REFERENCES[0], True)
    assert BleuReward()(REFERENCES, REFERENCES[0], True) == pytest.approx(1.0)
    assert RougeReward()(REFERENCES, REFERENCES[0], True) == pytest.approx(1.0)
    plain = BleuReward(score_end=False)
    assert plain(REFERENCES, REFERENCES[0], False) == plain(REFERENCES, REFERENCES[0], True) == pytest.approx(1.0)


def test_rewards_leave_references_and_words_unchanged(cider):
    references, caption = [list(reference) for reference in REFERENCES], ["a", "ring"]
    for reward in (BleuReward(), RougeReward(), cider, WeightedSum([(1.0, BleuReward()), (2.0, RougeReward())])):
        reward(references, caption, True)
        assert references == REFERENCES
        assert caption == ["a", "ring"]


# --- names and sums ---------------------------------------------------------------------------------------------------


def scores_of(reward):
    """Scores of a few captions."""
    captions = [REFERENCES[0], REFERENCES[1][:3], "a small blue circle".split(), []]
    return [reward(REFERENCES, caption, ended) for caption in captions for ended in (True, False)]


def test_rewards_are_found_by_name(cider):
    assert scores_of(make_reward("bleu", no_training)) == scores_of(BleuReward())
    assert scores_of(make_reward(" rouge-l ", no_training)) == scores_of(RougeReward())
    assert scores_of(make_reward("cider", few_shapes)) == scores_of(cider)


def test_registered_functions_are_found_by_name():
    register_reward("words", word_count)
    register_reward("words", word_count)  # a module that is imported again
    assert make_reward("words", no_training)([["a"]], ["a", "b"], False) == 2.0
    with pytest.raises(ValueError, match="'words' is registered already"):
        register_reward("words", BleuReward())
    for name in ("bleu", "cider", "rouge-l", "exact", "cer", "wer"):
        with pytest.raises(ValueError, match=f"'{name}' is registered already"):
            register_reward(name, word_count)


@pytest.mark.parametrize("name", ["", " ", "a + b", "2*a", "a*", "+", " words", "words "])
def test_names_that_sums_would_not_find_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a reward") as caught:
        register_reward(name, word_count)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("bleu + cider", (1, 1, 0, 0)),
        ("bleu + 0.5 * cider", (1, 0.5, 0, 0)),
        ("2*rouge-l+bleu", (1, 0, 2, 0)),
        ("-1.5 * bleu", (-1.5, 0, 0, 0)),
        ("0.5 * 4 * bleu + 1e-2 * words", (2, 0, 0, 0.01)),
        ("bleu + bleu + 0.25*cider + rouge-l + words", (2, 0.25, 1, 1)),
        ("0 * bleu + words", (0, 0, 0, 1)),
    ],
)
def test_sums_of_rewards_can_be_written(cider, name, weights):
    register_reward("words", word_count)
    terms = [scores_of(reward) for reward in (BleuReward(), cider, RougeReward(), word_count)]
    expected = np.tensordot(weights, terms, 1).tolist()
    assert scores_of(make_reward(name, few_shapes)) == pytest.approx(expected, abs=1e-12)


def test_a_sum_can_be_made_of_functions():
    both = WeightedSum([(0.5, BleuReward()), (2.0, word_count)])
    register_reward("both", both)
    expected = [
        0.5 * bleu + 2 * count for bleu, count in zip(scores_of(BleuReward()), scores_of(word_count), strict=True)
    ]
    assert scores_of(both) == pytest.approx(expected)
    assert scores_of(make_reward("2 * both", no_training)) == pytest.approx([2 * score for score in expected])


def test_unknown_rewards_are_named_with_those_registered():
    register_reward("words", word_count)
    for name, unknown in (("rouge", "rouge"), ("bleu + meteor", "meteor"), ("bleu +", ""), ("0.5", "0.5"), ("", "")):
        with pytest.raises(ValueError, match=r"bleu, cer, cider, exact, rouge-l, wer, words$") as caught:
            make_reward(name, no_training)
        assert f"unknown reward {unknown!r}" in str(caught.value)


@pytest.mark.parametrize(
    "term", ["half * bleu", "nan * bleu", "inf * bleu", "bleu * 0.5", "* bleu", "1e300*1e300*bleu"]
)
def test_weights_that_are_no_numbers_are_named(term):
    for name in (term, f"bleu + {term}"):
        with pytest.raises(ValueError, match="no finite number as its weight") as caught:
            make_reward(name, no_training)
        assert repr(term) in str(caught.value)
        assert repr(name) in str(caught.value)


# --- episodes ---------------------------------------------------------------------------------------------------------


def episode(env, seed):
    """One episode with the same actions for the same seed: its rewards and its end."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    rewards, ended = [], False
    while not ended:
        observation, reward, ended, _, info = env.step(int(rng.integers(env.action_space.n)))
        rewards.append(reward)
    task = env.unwrapped.task
    has_end = observation["word"].item() == task.assets.captioner.vocabulary.end
    references = env.unwrapped.dataset.references(env.unwrapped.row)
    return rewards, (references, info["caption"].split(), has_end)


@pytest.mark.parametrize("name", ["bleu", "few-cider", "rouge-l", "bleu + 0.5 * few-cider + -0.3 * rouge-l", "words"])
def test_shaped_rewards_sum_to_the_terminal_one(captioner, cider, name):
    register_reward("few-cider", cider)
    register_reward("words", word_count)
    options = {"split": "val", "captioner": captioner, "reward": name, "decoding": "sample"}
    plain, shaped = (gym.make("Glimpse/Shapes-v0", shaped=shaped, **options) for shaped in (False, True))
    reward = make_reward(name, no_training)
    ends, payments = set(), []
    for seed in range(12):
        rewards, caption = episode(plain, seed)
        spread, same = episode(shaped, seed)
        assert same == caption
        assert rewards[:-1] == [0.0] * (len(rewards) - 1)
        assert rewards[-1] == pytest.approx(reward(*caption), abs=1e-9)
        assert math.fsum(spread) == pytest.approx(rewards[-1], abs=1e-9)
        ends.add(caption[2])
        payments.append(np.count_nonzero(spread))
    assert ends == {False, True}  # captions with <end> and without were among them
    assert max(payments) > 3  # at several steps, not only the last


def test_unknown_rewards_are_refused_when_the_environment_is_made(captioner):
    with pytest.raises(ValueError, match="unknown reward 'blue'"):
        gym.make("Glimpse/Shapes-v0", captioner=captioner, reward="bleu + blue")


@pytest.mark.slow
def test_cider_of_an_environment_learns_from_the_training_split(captioner):
    env = gym.make("Glimpse/Shapes-v0", split="val", captioner=captioner, reward="cider")
    assert env.unwrapped.task.reward.frequencies.images == 20_000
    rewards, caption = episode(env, 3)
    assert rewards[-1] == pytest.approx(env.unwrapped.task.reward(*caption), abs=1e-9)


JUDGES = [BleuReward(), BleuReward(score_end=False), RougeReward()]
STRINGS = [("a dog runs", ["a"]), (["a dog runs"], ["a"]), ([["a", "dog"], "a dog"], ["a"]), ([["a", "dog"]], "a dog")]


@pytest.mark.parametrize(("references", "caption"), STRINGS)
@pytest.mark.parametrize(
    "reward", [BleuReward(), BleuReward(score_end=False), RougeReward(), make_reward("bleu + rouge-l", None)]
)
def test_no_reward_reads_a_string_as_its_letters(reward, references, caption):
    with pytest.raises(ValueError, match=r"lists? of words, got the string .*split it into words"):
        reward(references, caption, True)


@pytest.mark.parametrize("references", [[], [[]], [[], []]])
@pytest.mark.parametrize("reward", JUDGES)
def test_no_reward_scores_against_nothing(reward, references):
    with pytest.raises(ValueError, match="at least one reference with words"):
        reward(references, ["a"], True)


def test_exponents_are_not_read_as_sums():
    reward = make_reward("1e+2*bleu+1e-1 * rouge-l", None)
    assert [weight for weight, _ in reward.terms] == [100.0, 0.1]


@pytest.mark.parametrize("kind", [np.float32, np.float16, torch.tensor, np.array])
def test_numbers_of_every_kind_are_rewards(captioner, kind):
    name = f"of-{kind.__name__}"
    register_reward(name, lambda references, words, ended: kind(0.5))
    env = GlimpseEnv(captioner=captioner, split="val", reward=name, max_caption_length=1)
    env.reset(seed=0)
    assert env.step(0)[1] == 0.5


def test_rewards_that_are_no_numbers_are_refused(captioner):
    register_reward("praise-in-words", lambda references, words, ended: "good")
    env = GlimpseEnv(captioner=captioner, split="val", reward="praise-in-words", max_caption_length=1)
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"reward .*lambda.* returned 'good', which is no number"):
        env.step(0)
