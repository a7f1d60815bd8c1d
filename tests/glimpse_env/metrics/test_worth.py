"""What is followed word by word is worth what the reward says of the words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.metrics.cider import DocumentFrequencies, cider_d
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, RougeReward, WeightedSum, with_end
from glimpse_env.metrics.running_rewards import BleuWorth, FunctionWorth, SumWorth, follow

VOCABULARY = Vocabulary("abc")
CPU = torch.device("cpu")
FEW = settings(max_examples=120, deadline=None, derandomize=True)


def cider(references, words, ended):
    return cider_d(*with_end(references, words, ended), DocumentFrequencies.of([[["a", "b"]], [["a"]], [["c"]]]))


def words_and_end(references, words, ended):
    """Worth something before a word is said."""
    return 1.5 + len(words) * len(references) + 100 * ended


REWARDS = {
    "bleu": BleuReward(),
    "bleu without <end>": BleuReward(score_end=False),
    "bleu-2, method 4": BleuReward(2, 4),
    "bleu-3, unsmoothed, without <end>": BleuReward(3, 0, score_end=False),
    "rouge-l": RougeReward(),
    "cider": cider,
    "own": words_and_end,
    "sum": WeightedSum([(1.0, BleuReward()), (0.5, cider), (-0.25, BleuReward(1, 2, score_end=False))]),
    "sum of a sum": WeightedSum(
        [(2.0, WeightedSum([(0.5, BleuReward()), (3.0, words_and_end)])), (0.1, RougeReward())]
    ),
}


class Images:
    """References by row, and which rows were asked for."""

    def __init__(self, references):
        self.told = references
        self.asked = []

    def __len__(self):
        return len(self.told)

    def references(self, row):
        self.asked.append(row)
        return self.told[row]


class Captions:
    """Captions in the making: what follows their worth, and their words for the reward itself."""

    def __init__(self, reward, references, captions, max_length):
        self.reward, self.images = reward, Images(references)
        self.kept = [(0, (), False)] * captions  # row, words without <end>, whether it was said
        told = SplitReferences(self.images, VOCABULARY)
        self.worth = follow(reward, told, captions, max_length, CPU, self.kept_caption)
        self.begin(range(captions), [0] * captions)

    def kept_caption(self, slot):
        row, words, ended = self.kept[slot]
        return row, list(words), ended

    def begin(self, slots, rows):
        self.worth.begin(np.array(slots), np.array(rows))
        fresh = dict(zip(slots, rows, strict=True))
        self.kept = [(fresh[slot], (), False) if slot in fresh else caption for slot, caption in enumerate(self.kept)]

    def fork(self, parents):
        self.worth.fork(torch.tensor(parents))
        self.kept = [self.kept[parent] for parent in parents]

    def say(self, letters):
        """A word for every caption that goes on, ``$`` for ``<end>``, ``?`` for ``<unk>``; else it stays as it is."""
        said = [letter in "abc?$" and not ended for letter, (_, _, ended) in zip(letters, self.kept, strict=True)]
        ids = [VOCABULARY.end if letter == "$" else VOCABULARY.encode([letter])[0] for letter in letters]
        self.kept = [
            (row, words if letter == "$" else (*words, *VOCABULARY.decode([word])), letter == "$")
            if grows
            else (row, words, ended)
            for (row, words, ended), letter, word, grows in zip(self.kept, letters, ids, said, strict=True)
        ]
        self.worth.append(torch.tensor(ids), torch.tensor(said))

    def play(self, scripts):
        """Let the captions follow a text each, in step: a digit begins anew, ``<`` goes on from the caption before."""
        for letters in itertools.zip_longest(*scripts, fillvalue="."):
            alike = [self.kept[slot - 1][0] == row for slot, (row, _, _) in enumerate(self.kept)]
            self.fork([slot - (letter == "<" and alike[slot]) for slot, letter in enumerate(letters)])
            if fresh := [slot for slot, letter in enumerate(letters) if letter.isdigit()]:
                self.begin(fresh, [int(letters[slot]) for slot in fresh])
            self.say(letters)
            self.check()

    def check(self, due=None):
        due = [True] * len(self.kept) if due is None else due
        scores = self.worth.scores(torch.tensor(due))
        assert scores.dtype == torch.float64
        expected = [self.reward(self.images.told[row], list(words), ended) for row, words, ended in self.kept]
        for ours, theirs in itertools.compress(zip(scores.tolist(), expected, strict=True), due):
            assert abs(ours - theirs) <= 1e-12


words = st.text("ab?c", max_size=9).map(list)  # ? is in no vocabulary
references = st.lists(words, min_size=1, max_size=3).filter(any)
images = st.lists(references, min_size=3, max_size=3)
scripts = st.lists(st.text("abc?.$<012", min_size=3, max_size=12), min_size=3, max_size=3)


@pytest.mark.parametrize("name", REWARDS)
@FEW
@given(images, scripts)
def test_the_worth_of_every_prefix_is_what_the_reward_says(name, told, played):
    captions = Captions(REWARDS[name], told, 3, max_length=max(map(len, played)))
    captions.check()  # nothing said yet
    captions.play(played)


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(images, scripts, scripts)
def test_a_snapshot_is_gone_back_to_as_often_as_wanted(name, told, before, after):
    captions = Captions(REWARDS[name], told, 3, max_length=24)
    captions.play(before)
    state, kept = captions.worth.snapshot(), captions.kept
    for _ in range(2):
        captions.play(after)
        captions.worth.restore(state)
        captions.kept = kept
        captions.check()


@pytest.mark.parametrize("name", REWARDS)
def test_captions_that_are_due_are_scored_whoever_else_is(name):
    captions = Captions(REWARDS[name], [[list("abcab")]], 3, max_length=5)
    captions.play(["ab$", "bca", "abc"])
    for due in itertools.product([False, True], repeat=3):
        captions.check(list(due))


@pytest.mark.parametrize("score_end", [True, False])
def test_end_counts_only_when_it_is_scored(score_end):
    captions = Captions(BleuReward(score_end=score_end), [[list("abc")]], 2, max_length=4)
    captions.play(["abc", "abc"])
    before = captions.worth.scores(torch.tensor([True, True])).tolist()
    captions.play(["$", "."])
    ended, open_ = captions.worth.scores(torch.tensor([True, True])).tolist()
    assert open_ == before[1]
    assert ended > before[0] if score_end else ended == before[0]


def test_bleu_reads_the_references_of_an_image_once():
    captions = Captions(BleuReward(), [[["a"]], [["b"]], [["c"]]], 2, max_length=9)
    captions.play(["aa2aa", "b0b2"])
    assert captions.images.asked == [0, 2]


def test_a_function_is_asked_for_those_that_are_due():
    asked = []

    def noted(references, words, ended):
        asked.append((references, words, ended))
        return len(words)

    captions = Captions(noted, [[["a"]], [["b"], ["c"]]], 3, max_length=5)
    captions.begin([1], [1])
    captions.say("ab.")
    captions.say("$..")
    scores = captions.worth.scores(torch.tensor([True, True, False]))
    assert scores.tolist() == [1.0, 1.0, 0.0]
    assert asked == [([["a"]], ["a"], True), ([["b"], ["c"]], ["b"], False)]


def test_every_term_of_a_sum_is_followed_in_its_own_way():
    def asked_anew(references, words, ended):
        return 0.0

    rewards = [BleuReward(), asked_anew, WeightedSum([(1.0, BleuReward()), (1.0, asked_anew)])]
    captions = Captions(WeightedSum([(1.0, reward) for reward in rewards]), [[["a"]]], 1, max_length=3)
    captions.images.asked.clear()
    captions.play(["abc"])
    assert captions.images.asked == [0] * 6  # for the function, in the sum and in the sum in it; never for BLEU


def test_what_follows_a_reward_can_be_made_by_hand():
    told, vocabulary = Images([[list("ab")]]), VOCABULARY
    references = SplitReferences(told, vocabulary)
    counted = BleuWorth(BleuReward(2), references, 2, 3, CPU)
    asked = FunctionWorth(words_and_end, references, lambda slot: (0, ["a"] * (slot + 1), False))
    both = SumWorth([(2.0, counted), (-1.0, asked)])
    both.begin(np.array([0, 1]), np.array([0, 0]))
    both.append(torch.tensor(vocabulary.encode("aa")), torch.tensor([True, True]))
    both.append(torch.tensor(vocabulary.encode("aa")), torch.tensor([False, True]))
    expected = [
        2 * BleuReward(2)(told.told[0], words, False) - words_and_end(told.told[0], words, False)
        for words in (["a"], ["a", "a"])
    ]
    assert both.scores(torch.tensor([True, True])).tolist() == pytest.approx(expected, abs=1e-12)
