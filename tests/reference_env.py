"""The environment once more, made for reading: one caption, one word, one score at a time.

What the fast environments are compared with. It takes from the package the decoder as it is trained, and nothing of how
episodes are stepped, batched, scored or copied there.
"""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from nltk.translate import bleu_score

PAD, START, END, UNK = range(4)


@functools.lru_cache(maxsize=100_000)
def nltk_bleu(references, words, order):
    smooth = bleu_score.SmoothingFunction().method1
    return float(bleu_score.sentence_bleu(references, words, (1 / order,) * order, smooth)) if words else 0.0


def assert_same(first, second, where=""):
    """Two nested structures hold the same values in the same types; floats to rounding."""
    if isinstance(first, (dict, tuple, list)):
        pairs = first.items() if isinstance(first, dict) else enumerate(first)
        assert len(first) == len(second), where
        for key, value in pairs:
            assert_same(value, second[key], f"{where}/{key}")
    elif isinstance(first, np.ndarray) and first.dtype == object:
        for slot, value in enumerate(first):
            assert_same(value, second[slot], f"{where}[{slot}]")
    elif first is None or isinstance(first, str):
        assert first == second, where
    else:
        first, second = np.asarray(first), np.asarray(second)
        assert (first.dtype, first.shape) == (second.dtype, second.shape), where
        np.testing.assert_allclose(first, second, atol=2e-5, err_msg=where)


class ReferenceEnv:
    """One episode. ``margin`` is how far the closest of all choices of words was from falling otherwise."""

    def __init__(self, captioner, dataset, features, attention, observe, shaped, decoding, longest):
        self.captioner, self.dataset, self.features = captioner, dataset, features
        self.attention, self.observe, self.shaped, self.longest = attention, observe, shaped, longest
        self.drawn, self.generator, self.row, self.margin = decoding == "sample", None, None, math.inf
        self.words, self.glimpses, self.rewards, self.ended = [], [], [], False

    def reset(self, seed=None, image=None):
        if seed is not None:
            self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self.row = int(self.generator.random() * len(self.dataset)) if image is None else image
        self.annotations = torch.from_numpy(self.features[self.row]).float()  # (L, D)
        self.state = self.captioner.decoder.init_state(self.annotations[None])
        self.words, self.glimpses, self.rewards, self.ended = [], [], [], False

    def step(self, action):
        before = self.bleu(4, end=True)
        alpha = self.weights(action)
        context = torch.from_numpy(alpha) @ self.annotations
        last = torch.tensor([self.last])
        logits, self.state = self.captioner.decoder.step(context[None], last, self.state)
        logits[0, [PAD, START, UNK]] = -torch.inf
        self.words.append(self.choose(logits[0].double()))
        self.glimpses.append(alpha)
        self.ended = self.words[-1] == END or len(self.words) == self.longest
        score = self.bleu(4, end=True)
        self.rewards.append(score - before if self.shaped else score if self.ended else 0.0)

    def weights(self, action):
        if self.attention == "hard":
            return np.eye(len(self.annotations), dtype=np.float32)[action]
        alpha = np.asarray(action, np.float32)
        alpha = alpha if alpha.any() else np.ones_like(alpha)
        return alpha / alpha.sum()

    def choose(self, logits):
        if not self.drawn:
            best = logits.topk(2)
            self.margin = min(self.margin, float(best.values[0] - best.values[1]))
            return int(best.indices[0])
        edges, draw = logits.softmax(-1).cumsum(-1), self.generator.random()
        self.margin = min(self.margin, float((edges - draw).abs().min()))
        return int((edges > draw).nonzero()[0])

    @property
    def last(self):
        return self.words[-1] if self.words else START

    def caption(self):
        return self.captioner.vocabulary.decode(self.words[: len(self.words) - (self.last == END)])

    def bleu(self, order, end):
        tail = ["<end>"] if end else []
        references = tuple(tuple(reference + tail) for reference in self.dataset.references(self.row))
        return nltk_bleu(references, (*self.caption(), *(tail if self.last == END else [])), order)

    def observation(self):
        attention_sum = sum(self.glimpses, np.zeros(len(self.annotations), np.float32))
        features = (
            self.annotations.numpy() * (attention_sum > 0)[:, None] if self.observe == "glimpsed" else self.annotations
        )
        image = {"image": [self.row]} if self.observe == "index" else {"features": features}
        state = {
            "hidden": self.state.hidden[0],
            "word": [self.last],
            "glimpses": attention_sum / max(len(self.words), 1),
        }
        return {**image, **state, "time": [len(self.words) / self.longest]}

    def info(self):
        info = {"action_mask": np.ones(len(self.annotations), np.int8)}
        if self.ended:
            scores = [self.bleu(order, end=False) for order in (1, 2, 3, 4)]
            info |= {"caption": " ".join(self.caption()), "bleu": scores, "image_id": self.dataset.image_id(self.row)}
        return info

    def copied(self):
        """The same episode, to go on by itself: a state to go back to."""
        twin = copy.copy(self)
        twin.generator = copy.deepcopy(self.generator)
        twin.words, twin.glimpses, twin.rewards = list(self.words), list(self.glimpses), list(self.rewards)
        return twin


def step_in_vector(env, action, mode):
    """What a vector environment does with one of its episodes: reward, whether it ended, and what was final."""
    if mode == AutoresetMode.NEXT_STEP and env.ended:
        env.reset()
        return 0.0, False, None
    env.step(action)
    reward, ended = env.rewards[-1], env.ended
    if mode != AutoresetMode.SAME_STEP or not ended:
        return reward, ended, None
    final = env.observation(), env.info()
    env.reset()
    return reward, ended, final
