"""Trajectories: captions sampled from a policy with the glimpse before every word, and their log-probabilities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.attention import AdditiveAttention, mask_scores
from agents.attention_agents import entropy, log_probability, sample_locations
from glimpse_env.models.captioner import Captioner
from glimpse_env.rollout.dynamics import CaptionDynamics
from train.captioner.batches import CaptionBatch
from train.captioner.losses import unroll

SCORE_CHUNK = 64  # episodes whose scores are computed together: the sums stay in the cache


class Trajectories(NamedTuple):
    """K captions of each of I images, over T steps; (T, I, K) each, ``hidden`` (T, I, K, H)."""

    hidden: Tensor  # the decoder's hidden state before each word, float32
    locations: Tensor  # of the glimpse before each word, int64
    words: Tensor  # ids, int64
    rewards: Tensor  # of each step, float32
    alive: Tensor  # which steps come before the end of their caption, bool
    sampled: Tensor  # ``alive``, without the greedy captions of the self-critical baseline, bool

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
    masks = dynamics.features.location_masks(rows.repeat(count), device)
    greedy = torch.zeros(len(rows), count, dtype=torch.bool, device=device)
    greedy[:, -1] = greedy_last
    steps: list[tuple[Tensor, ...]] = []
    while not dynamics.episodes.ended.all():
        alive = torch.from_numpy(~dynamics.episodes.ended).to(device)
        hidden = dynamics.episodes.hidden.clone()  # no inference tensor, so that gradients can be computed from it
        scores = mask_scores(_scores(attention, keys, hidden.unflatten(0, (-1, count))), masks)
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
    chunks = zip(keys.unsqueeze(1).split(size), hidden.split(size), strict=True)
    return torch.cat([attention.scores(*chunk) for chunk in chunks]).flatten(0, 1)


class LogProbabilities(NamedTuple):
    """Log-probabilities of the actions of trajectories, 0 after a caption's end; (T, I, K), float32."""

    locations: Tensor  # of the glimpses, log α (SAT eq. 8)
    words: Tensor  # of the words; 0 where the decoder is not trained
    entropy: Tensor  # of α, in nats


def glimpse_log_probabilities(
    attention: AdditiveAttention, annotations: Tensor, trajectories: Trajectories, masks: Tensor | None = None
) -> LogProbabilities:
    """Log-probabilities of the glimpses alone, from the stored hidden states: the decoder is not run again.

    ``annotations`` are (I, L, D); ``masks`` say which locations the images have, (I, L), bool, None for all.
    """
    alive = trajectories.alive
    scores = glimpse_scores(attention, annotations, trajectories, masks)
    zeros = torch.zeros(alive.shape, device=alive.device)
    log_alpha = log_probability(scores, trajectories.locations[alive])
    return LogProbabilities(zeros.masked_scatter(alive, log_alpha), zeros, zeros.masked_scatter(alive, entropy(scores)))


def caption_log_probabilities(
    captioner: Captioner,
    attention: AdditiveAttention,
    annotations: Tensor,
    trajectories: Trajectories,
    rows: np.ndarray,
    masks: Tensor | None = None,
) -> LogProbabilities:
    """Log-probabilities of glimpses and words, with a gradient for the decoder, which is run along the captions."""
    vocabulary = captioner.vocabulary
    batch, locations, order = as_caption_batch(trajectories, rows, vocabulary.start)
    decoder = captioner.decoder.eval()  # words were sampled without dropout
    unrolled = unroll(
        decoder,
        attention,
        annotations,
        batch,
        "fixed",
        locations=locations,
        suppressed=vocabulary.suppressed,
        location_masks=masks,
    )
    inverse = order.argsort(1).unsqueeze(-1)

    def restore(values: Tensor) -> Tensor:
        """Values (I, K, T) of the batch in the order of the trajectories, (T, I, K)."""
        return values.gather(1, inverse.expand_as(values)).permute(2, 0, 1).float()

    return LogProbabilities(restore(unrolled.log_alpha), restore(unrolled.likelihood), restore(unrolled.entropy))


def glimpse_scores(
    attention: AdditiveAttention, annotations: Tensor, trajectories: Trajectories, masks: Tensor | None = None
) -> Tensor:
    """Scores of the locations before each of the M words, (M, L), in the order of ``trajectories.alive``."""
    keys = attention.keys(annotations)  # (I, L, A)
    hidden, alive = trajectories.hidden, trajectories.alive
    positions = torch.arange(alive.numel(), device=alive.device).view_as(alive)
    # Image by image: to gather the keys of all words at once would copy them for every word, and take 3 times as long.
    scores = [
        mask_scores(attention.scores(keys[i], hidden[:, i][alive[:, i]]), None if masks is None else masks[i])
        for i in range(len(keys))
    ]
    order = torch.cat([positions[:, i][alive[:, i]] for i in range(len(keys))]).argsort()
    return torch.cat(scores)[order]


def as_caption_batch(trajectories: Trajectories, rows: np.ndarray, start: int) -> tuple[CaptionBatch, Tensor, Tensor]:
    """Trajectories of images at ``rows``, (I,), int64, as a batch for ``unroll``, longest captions first.

    Returns:
        The batch; the location before each word, (I, K, T); and the order of each image's captions, (I, K).
    """
    lengths, order = trajectories.alive.sum(0).sort(1, descending=True)  # (I, K)

    def arrange(values: Tensor) -> Tensor:
        return values.permute(1, 2, 0).gather(1, order.unsqueeze(-1).expand(-1, -1, len(values)))

    words = arrange(trajectories.words)  # (I, K, T)
    tokens = torch.cat([torch.full_like(words[..., :1], start), words], -1)
    batch = CaptionBatch(torch.from_numpy(rows).to(tokens.device), tokens, lengths)
    return batch, arrange(trajectories.locations), order
