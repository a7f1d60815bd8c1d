"""What captions drawn from a policy earned, and how much of it each glimpse is credited with.

Knows dynamics, attention and rewards. It does not know options, optimisers or runs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from agents.attention import AdditiveAttention
from agents.attention_agents import sample_locations
from glimpse_env.metrics.bleu import BleuStatistics
from glimpse_env.rollout.dynamics import CaptionDynamics
from train.captioner.batches import CaptionBatch

Baseline = Literal["leave-one-out", "self-critical", "moving-average", "value"]
PART = 64  # episodes whose scores are computed together: the sums stay in the cache


class Rollouts(NamedTuple):
    """The captions of I images, K each, of which the last may be greedy; B = I · K episodes, an image's in a row.

    Attributes:
        hidden: the decoder's state before each word, (T, B, H).
        looks: where it was read from, (T, B), int64.
        words: ids, (T, B), int64.
        rewards: paid for each word, (T, B), float32.
        alive: which words were said, (T, B), bool.
    """

    hidden: Tensor
    looks: Tensor
    words: Tensor
    rewards: Tensor
    alive: Tensor


@torch.no_grad()
def roll_out(
    dynamics: CaptionDynamics,
    attention: AdditiveAttention,
    keys: Tensor,
    rows: np.ndarray,
    generator: torch.Generator,
    greedy_last: bool = False,
) -> Rollouts:
    """Caption images with glimpses drawn from the policy, s̃ of SAT eq. 12, and words as the dynamics choose them.

    Args:
        dynamics: of I · K episodes, K an image.
        attention: the policy's scores.
        keys: of the images, (I, L, A).
        rows: the images, (I,), int64.
        generator: draws glimpses and words.
        greedy_last: whether the last caption of each image takes the likeliest glimpse and word instead.
    """
    count = dynamics.per_image
    dynamics.begin(np.arange(len(rows) * count), rows.repeat(count))
    device = dynamics.device
    greedy = torch.zeros(len(rows), count, dtype=torch.bool, device=device)
    greedy[:, -1] = greedy_last
    greedy = greedy.flatten()
    steps: list[tuple[Tensor, ...]] = []
    while not dynamics.episodes.ended.all():
        alive = torch.from_numpy(~dynamics.episodes.ended).to(device)
        hidden = dynamics.episodes.hidden.clone()  # an ordinary tensor again, for the gradient's sake
        grouped = hidden.unflatten(0, (-1, count))  # (I, K, H)
        size = max(PART // count, 1)
        scores = torch.cat(
            [
                attention.scores(keys[i : i + size].unsqueeze(1), grouped[i : i + size])
                for i in range(0, len(rows), size)
            ]
        ).flatten(0, 1)  # (B, L)
        looks = torch.where(greedy, scores.argmax(-1), sample_locations(scores.softmax(-1), generator))
        logits = dynamics.look(looks.cpu().numpy())
        words = dynamics.sampling.choose(
            logits,
            torch.rand(len(looks), dtype=torch.float64, device=device, generator=generator)
            if dynamics.sampling.random
            else None,
        )
        if dynamics.sampling.random and greedy_last:
            words = torch.where(greedy, logits.argmax(-1), words)
        made = dynamics.say(words)
        paid, said = (torch.from_numpy(part).to(device) for part in (made.rewards, made.words))
        steps.append((hidden, looks, said, paid.float(), alive))
    return Rollouts(*(torch.stack(part) for part in zip(*steps, strict=True)))


def advantages(
    rollouts: Rollouts,
    per_image: int,
    baseline: Baseline,
    reward_to_go: bool = False,
    average: float = 0.0,
    values: Tensor | None = None,
) -> Tensor:
    """What each glimpse earned more than its baseline, (T, B); 0 for greedy captions and after the end.

    Every baseline is independent of the glimpse it is subtracted for, so the expected gradient is that of the expected
    reward (Williams 1992).

    Args:
        rollouts: with ``self-critical``, the last of each image greedy.
        per_image: K.
        baseline: which one.
        reward_to_go: credit a glimpse with what is paid from it on, not with all.
        average: of past rewards, for ``moving-average``.
        values: predictions of what is to come, (T, B), for ``value``.
    """
    paid = rollouts.rewards
    whole = paid.sum(0)  # (B,)
    returns = paid.flip(0).cumsum(0).flip(0) if reward_to_go else whole.expand_as(paid)  # (T, B)
    grouped = returns.unflatten(1, (-1, per_image))  # (T, I, K)
    if baseline == "leave-one-out":  # Kool et al. 2019
        compared = ((grouped.sum(2, keepdim=True) - grouped) / (per_image - 1)).flatten(1)
    elif baseline == "self-critical":  # Rennie et al. 2017
        compared = grouped[..., -1:].expand_as(grouped).flatten(1)
    elif baseline == "moving-average":  # SAT §4.1
        compared = torch.full_like(returns, average)
        if reward_to_go:  # what is left of the usual reward: what was paid before is no choice any more
            compared = average - (paid.cumsum(0) - paid)
    elif values is not None:  # Mnih and Gregor 2014
        compared = values
    else:
        raise ValueError("baseline 'value' needs values; make them with a value network")
    gained = (returns - compared) * rollouts.alive
    if baseline == "self-critical":
        gained = gained.unflatten(1, (-1, per_image)).clone()
        gained[..., -1] = 0
        gained = gained.flatten(1)
    return gained


def corpus_gains(each: BleuStatistics, mean: BleuStatistics) -> Tensor:
    """What each caption adds to the logarithm of corpus BLEU, (B,), float64, to first order and times their number.

    The derivative of log BLEU = Σₙ (log matchesₙ − log totalsₙ) / N + min(0, 1 − r / c) by a caption's own counts, at
    the counts of a corpus of such captions.

    Args:
        each: counts of B captions.
        mean: of a caption of the corpus; its matches above 0.
    """
    precision = (each.matches / mean.matches - each.totals / mean.totals).mean(-1)
    ratio = mean.reference_length / mean.length  # r / c
    brevity = ratio * (each.length / mean.length - each.reference_length / mean.reference_length)
    return precision + brevity * (ratio > 1)


def glimpse_scores(attention: AdditiveAttention, annotations: Tensor, rollouts: Rollouts, per_image: int) -> Tensor:
    """Scores, with gradient, of the locations before every word that was said, (M, L), in the order of ``alive``."""
    keys = attention.keys(annotations)  # (I, L, A)
    hidden, alive = (part.unflatten(1, (-1, per_image)) for part in (rollouts.hidden, rollouts.alive))
    places = torch.arange(alive.numel(), device=alive.device).view_as(alive)
    # Image by image: keys[which] of all words at once would copy each image's keys for every word, 3 times as slow.
    scores = [attention.scores(keys[i], hidden[:, i][alive[:, i]]) for i in range(len(keys))]
    order = torch.cat([places[:, i][alive[:, i]] for i in range(len(keys))]).argsort()
    return torch.cat(scores)[order]


class Value(nn.Module):
    """Predicts what a caption will earn from here on: of the hidden state and the image's mean annotation.

    A baseline that depends on the input (Mnih and Gregor 2014).

    Args:
        hidden_dim: H.
        feature_dim: D.
    """

    def __init__(self, hidden_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden_dim + feature_dim, 128), nn.Tanh(), nn.Linear(128, 1))

    def forward(self, hidden: Tensor, annotations: Tensor, per_image: int) -> Tensor:
        """Values (T, B) of states (T, B, H) on images (I, L, D)."""
        means = annotations.mean(1).repeat_interleave(per_image, 0).expand(*hidden.shape[:2], -1)
        values: Tensor = self.layers(torch.cat([hidden, means], -1)).squeeze(-1)
        return values


def as_batch(rollouts: Rollouts, rows: np.ndarray, per_image: int, start: int) -> tuple[CaptionBatch, Tensor, Tensor]:
    """Rollouts as captions for ``unroll``, the longest of each image first.

    Returns:
        The batch; where each word is read from, (I, K, T); and the order of each image's captions, (I, K).
    """
    lengths = rollouts.alive.sum(0).unflatten(0, (-1, per_image))  # (I, K)
    lengths, order = lengths.sort(1, descending=True)

    def arranged(values: Tensor) -> Tensor:
        grouped = values.t().unflatten(0, (-1, per_image))  # (I, K, T)
        return grouped.gather(1, order.unsqueeze(-1).expand_as(grouped))

    words = arranged(rollouts.words)
    tokens = torch.cat([torch.full_like(words[..., :1], start), words], -1)
    return CaptionBatch(torch.from_numpy(rows).to(tokens.device), tokens, lengths), arranged(rollouts.looks), order
