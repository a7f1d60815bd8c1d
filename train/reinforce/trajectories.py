"""Trajectories sampled from a policy: the captions of a batch of images, with the glimpse before every word."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.attention import AdditiveAttention
from agents.attention_agents import sample_locations
from glimpse_env.rollout.dynamics import CaptionDynamics

SCORE_CHUNK = 64  # episodes whose scores are computed together: the sums stay in the cache


class Trajectories(NamedTuple):
    """K captions of each of I images, over T steps.

    Attributes:
        hidden: the decoder's hidden state before each word, (T, I, K, H), float32.
        locations: the location of the glimpse before each word, (T, I, K), int64.
        words: word ids, (T, I, K), int64.
        rewards: reward of each step, (T, I, K), float32.
        alive: which steps come before the end of their caption, (T, I, K), bool.
        sampled: ``alive``, without the greedy captions of the self-critical baseline, (T, I, K), bool.
    """

    hidden: Tensor
    locations: Tensor
    words: Tensor
    rewards: Tensor
    alive: Tensor
    sampled: Tensor

    def returns(self, reward_to_go: bool) -> Tensor:
        """Return that each step is credited with, (T, I, K): the reward to go, or the reward of the whole caption."""
        if reward_to_go:
            return self.rewards.flip(0).cumsum(0).flip(0)
        return self.rewards.sum(0).expand_as(self.rewards)


@torch.no_grad()
def roll_out(
    dynamics: CaptionDynamics,
    attention: AdditiveAttention,
    keys: Tensor,
    rows: np.ndarray,
    generator: torch.Generator,
    greedy_last: bool = False,
) -> Trajectories:
    """Caption images with glimpses sampled from the policy (s̃ of SAT eq. 12) and words as the dynamics choose them.

    Args:
        dynamics: I · K episodes, K an image.
        attention: scores the locations.
        keys: attention keys of the images, (I, L, A).
        rows: rows of the images, (I,), int64.
        generator: draws glimpses and words.
        greedy_last: whether the last caption of each image is greedy: the likeliest locations and words.
    """
    count, device = dynamics.per_image, dynamics.device
    dynamics.begin(np.arange(len(rows) * count), rows.repeat(count))
    greedy = torch.zeros(len(rows), count, dtype=torch.bool, device=device)
    greedy[:, -1] = greedy_last
    steps: list[tuple[Tensor, ...]] = []
    while not dynamics.episodes.ended.all():
        alive = torch.from_numpy(~dynamics.episodes.ended).to(device)
        hidden = dynamics.episodes.hidden.clone()  # no inference tensor, so that gradients can be computed from it
        scores = _scores(attention, keys, hidden.unflatten(0, (-1, count)))
        sampled = sample_locations(scores.softmax(-1), generator)
        locations = torch.where(greedy.flatten(), scores.argmax(-1), sampled) if greedy_last else sampled
        logits = dynamics.attend(locations.cpu().numpy())
        uniforms = None
        if dynamics.sampling.random:
            uniforms = torch.rand(len(locations), dtype=torch.float64, device=device, generator=generator)
        words = dynamics.sampling.choose(logits, uniforms)
        if dynamics.sampling.random and greedy_last:
            words = torch.where(greedy.flatten(), logits.argmax(-1), words)
        transition = dynamics.append_words(words)
        rewards, words = (torch.from_numpy(array).to(device) for array in (transition.rewards, transition.words))
        steps.append((hidden, locations, words, rewards.float(), alive))
    hidden, locations, words, rewards, alive = (
        torch.stack(tensors).unflatten(1, (-1, count)) for tensors in zip(*steps, strict=True)
    )
    return Trajectories(hidden, locations, words, rewards, alive, alive & ~greedy)


def _scores(attention: AdditiveAttention, keys: Tensor, hidden: Tensor) -> Tensor:
    """Scores (I · K, L) of hidden states (I, K, H) on keys (I, L, A), a chunk of images at a time."""
    size = max(SCORE_CHUNK // hidden.shape[1], 1)
    chunks = [
        attention.scores(keys[start : start + size].unsqueeze(1), hidden[start : start + size])
        for start in range(0, len(keys), size)
    ]
    return torch.cat(chunks).flatten(0, 1)
