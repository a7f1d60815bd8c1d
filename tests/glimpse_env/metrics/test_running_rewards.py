"""Running rewards equal the rewards of the words at every step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.metrics.cider import DocumentFrequencies, cider_d
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, RougeReward, WeightedSum, with_end
from glimpse_env.metrics.running_rewards import RunningBleu, RunningFunction, RunningReward, RunningSum, track
from tests.conftest import examples

VOCABULARY = Vocabulary("abc")
CPU = torch.device("cpu")
FEW = examples(120)


def cider(references, words, ended):
    return cider_d(
        *with_end(references, words, ended), DocumentFrequencies.from_references([[["a", "b"]], [["a"]], [["c"]]])
    )


def words_and_end(references, words, ended):
    """Not 0 for a caption without words."""
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
    """References by row, and the rows that were read."""

    def __init__(self, references):
        self.by_row = references
        self.reads = []

    def __len__(self):
        return len(self.by_row)

    def references(self, row):
        self.reads.append(row)
        return self.by_row[row]


class Captions:
    """Growing captions, twice: in a running reward, and as words for the reward itself."""

    def __init__(self, reward, references, captions, max_length):
        self.reward, self.images = reward, Images(references)
        self.captions = [(0, (), False)] * captions  # row, words without <end>, whether it has <end>
        split = SplitReferences(self.images, VOCABULARY)
        self.running = track(reward, split, captions, max_length, CPU, self.caption)
        self.begin(range(captions), [0] * captions)

    def caption(self, slot):
        row, words, ended = self.captions[slot]
        return row, list(words), ended

    def begin(self, slots, rows):
        self.running.begin(np.array(slots), np.array(rows))
        fresh = dict(zip(slots, rows, strict=True))
        self.captions = [
            (fresh[slot], (), False) if slot in fresh else caption for slot, caption in enumerate(self.captions)
        ]

    def fork(self, parents):
        self.running.fork(torch.tensor(parents))
        self.captions = [self.captions[parent] for parent in parents]

    def say(self, letters):
        """Append a word to every unfinished caption, ``$`` for ``<end>``, ``?`` for ``<unk>``; else nothing."""
        grows = [letter in "abc?$" and not ended for letter, (_, _, ended) in zip(letters, self.captions, strict=True)]
        ids = [VOCABULARY.end if letter == "$" else VOCABULARY.encode([letter])[0] for letter in letters]
        self.captions = [
            (row, words if letter == "$" else (*words, *VOCABULARY.decode([word])), letter == "$")
            if active
            else (row, words, ended)
            for (row, words, ended), letter, word, active in zip(self.captions, letters, ids, grows, strict=True)
        ]
        self.running.append(torch.tensor(ids), torch.tensor(grows))

    def play(self, scripts):
        """Append a text to each caption in step: a digit starts a new caption, ``<`` forks from the caption before."""
        for letters in itertools.zip_longest(*scripts, fillvalue="."):
            forkable = [self.captions[slot - 1][0] == row for slot, (row, _, _) in enumerate(self.captions)]
            self.fork([slot - (letter == "<" and forkable[slot]) for slot, letter in enumerate(letters)])
            if fresh := [slot for slot, letter in enumerate(letters) if letter.isdigit()]:
                self.begin(fresh, [int(letters[slot]) for slot in fresh])
            self.say(letters)
            self.check()

    def check(self, due=None):
        due = [True] * len(self.captions) if due is None else due
        scores = self.running.scores(torch.tensor(due))
        assert scores.dtype == torch.float64
        expected = [self.reward(self.images.by_row[row], list(words), ended) for row, words, ended in self.captions]
        for ours, theirs in itertools.compress(zip(scores.tolist(), expected, strict=True), due):
            assert abs(ours - theirs) <= 1e-12


words = st.text("ab?c", max_size=9).map(list)  # ? is in no vocabulary
references = st.lists(words, min_size=1, max_size=3).filter(any)
images = st.lists(references, min_size=3, max_size=3)
scripts = st.lists(st.text("abc?.$<012", min_size=3, max_size=12), min_size=3, max_size=3)


@pytest.mark.parametrize("name", REWARDS)
@FEW
@given(images, scripts)
def test_the_running_reward_of_every_prefix_is_its_reward(name, references, texts):
    captions = Captions(REWARDS[name], references, 3, max_length=max(map(len, texts)))
    captions.check()  # no words yet
    captions.play(texts)


@pytest.mark.parametrize("name", REWARDS)
@examples(40)
@given(images, scripts, scripts)
def test_a_snapshot_can_be_restored_repeatedly(name, references, before, after):
    captions = Captions(REWARDS[name], references, 3, max_length=24)
    captions.play(before)
    state, words = captions.running.snapshot(), captions.captions
    for _ in range(2):
        captions.play(after)
        captions.running.restore(state)
        captions.captions = words
        captions.check()


@pytest.mark.parametrize("name", REWARDS)
def test_captions_that_are_due_are_scored_whichever_others_are(name):
    captions = Captions(REWARDS[name], [[list("abcab")]], 3, max_length=5)
    captions.play(["ab$", "bca", "abc"])
    for due in itertools.product([False, True], repeat=3):
        captions.check(list(due))


@pytest.mark.parametrize("score_end", [True, False])
def test_end_counts_only_when_it_is_scored(score_end):
    captions = Captions(BleuReward(score_end=score_end), [[list("abc")]], 2, max_length=4)
    captions.play(["abc", "abc"])
    before = captions.running.scores(torch.tensor([True, True])).tolist()
    captions.play(["$", "."])
    ended, open_ = captions.running.scores(torch.tensor([True, True])).tolist()
    assert open_ == before[1]
    assert ended > before[0] if score_end else ended == before[0]


def test_bleu_reads_the_references_of_an_image_once():
    captions = Captions(BleuReward(), [[["a"]], [["b"]], [["c"]]], 2, max_length=9)
    captions.play(["aa2aa", "b0b2"])
    assert captions.images.reads == [0, 2]


def test_a_function_is_called_for_captions_that_are_due():
    calls = []

    def word_count(references, words, ended):
        calls.append((references, words, ended))
        return len(words)

    captions = Captions(word_count, [[["a"]], [["b"], ["c"]]], 3, max_length=5)
    captions.begin([1], [1])
    captions.say("ab.")
    captions.say("$..")
    scores = captions.running.scores(torch.tensor([True, True, False]))
    assert scores.tolist() == [1.0, 1.0, 0.0]
    assert calls == [([["a"]], ["a"], True), ([["b"], ["c"]], ["b"], False)]


def test_every_term_of_a_sum_has_its_running_reward():
    def zero(references, words, ended):
        return 0.0

    rewards = [BleuReward(), zero, WeightedSum([(1.0, BleuReward()), (1.0, zero)])]
    captions = Captions(WeightedSum([(1.0, reward) for reward in rewards]), [[["a"]]], 1, max_length=3)
    captions.images.reads.clear()
    captions.play(["abc"])
    assert captions.images.reads == [0] * 6  # for the function, in the sum and in the sum in it; never for BLEU


def test_running_rewards_can_be_combined_by_hand():
    images, vocabulary = Images([[list("ab")]]), VOCABULARY
    references = SplitReferences(images, vocabulary)
    counted = RunningBleu(BleuReward(2), references, 2, 3, CPU)
    called = RunningFunction(words_and_end, references, lambda slot: (0, ["a"] * (slot + 1), False))
    both = RunningSum([(2.0, counted), (-1.0, called)])
    both.begin(np.array([0, 1]), np.array([0, 0]))
    both.append(torch.tensor(vocabulary.encode("aa")), torch.tensor([True, True]))
    both.append(torch.tensor(vocabulary.encode("aa")), torch.tensor([False, True]))
    expected = [
        2 * BleuReward(2)(images.by_row[0], words, False) - words_and_end(images.by_row[0], words, False)
        for words in (["a"], ["a", "a"])
    ]
    assert both.scores(torch.tensor([True, True])).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_running_reward_must_score_captions():
    with pytest.raises(TypeError, match="abstract"):
        RunningReward()
