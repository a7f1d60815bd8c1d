"""Log-probabilities, with gradient, of the glimpses and words of trajectories."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.attention import AdditiveAttention
from agents.attention_agents import entropy, log_probability
from glimpse_env.models.captioner import Captioner
from train.captioner.batches import CaptionBatch
from train.captioner.losses import unroll
from train.reinforce.trajectories import Trajectories


class LogProbabilities(NamedTuple):
    """Log-probabilities of the actions of trajectories, 0 after a caption's end; (T, I, K), float32.

    Attributes:
        locations: of the glimpses, log α (SAT eq. 8).
        words: of the words; 0 where the decoder is not trained.
        entropy: of α, in nats.
    """

    locations: Tensor
    words: Tensor
    entropy: Tensor


def glimpse_log_probabilities(
    attention: AdditiveAttention, annotations: Tensor, trajectories: Trajectories
) -> LogProbabilities:
    """Log-probabilities of the glimpses alone, from the stored hidden states: the decoder is not run again."""
    alive = trajectories.alive
    scores = glimpse_scores(attention, annotations, trajectories)
    zeros = torch.zeros(alive.shape, device=alive.device)
    log_alpha = log_probability(scores, trajectories.locations[alive])
    return LogProbabilities(zeros.masked_scatter(alive, log_alpha), zeros, zeros.masked_scatter(alive, entropy(scores)))


def caption_log_probabilities(
    captioner: Captioner,
    attention: AdditiveAttention,
    annotations: Tensor,
    trajectories: Trajectories,
    rows: np.ndarray,
) -> LogProbabilities:
    """Log-probabilities of glimpses and words, with a gradient for the decoder, which is run along the captions."""
    vocabulary = captioner.vocabulary
    batch, locations, order = as_caption_batch(trajectories, rows, vocabulary.start)
    decoder = captioner.decoder.eval()  # words were sampled without dropout
    unrolled = unroll(
        decoder, attention, annotations, batch, "fixed", locations=locations, suppressed=vocabulary.suppressed
    )
    inverse = order.argsort(1).unsqueeze(-1)

    def restore(values: Tensor) -> Tensor:
        """Values (I, K, T) of the batch in the order of the trajectories, (T, I, K)."""
        return values.gather(1, inverse.expand_as(values)).permute(2, 0, 1).float()

    return LogProbabilities(restore(unrolled.log_alpha), restore(unrolled.likelihood), restore(unrolled.entropy))


def glimpse_scores(attention: AdditiveAttention, annotations: Tensor, trajectories: Trajectories) -> Tensor:
    """Scores of the locations before each of the M words, (M, L), in the order of ``trajectories.alive``."""
    keys = attention.keys(annotations)  # (I, L, A)
    hidden, alive = trajectories.hidden, trajectories.alive
    positions = torch.arange(alive.numel(), device=alive.device).view_as(alive)
    # Image by image: to gather the keys of all words at once would copy them for every word, and take 3 times as long.
    scores = [attention.scores(keys[i], hidden[:, i][alive[:, i]]) for i in range(len(keys))]
    order = torch.cat([positions[:, i][alive[:, i]] for i in range(len(keys))]).argsort()
    return torch.cat(scores)[order]


def as_caption_batch(trajectories: Trajectories, rows: np.ndarray, start: int) -> tuple[CaptionBatch, Tensor, Tensor]:
    """Trajectories as a batch for ``unroll``, the longest caption of each image first.

    Args:
        trajectories: captions of the images.
        rows: rows of the images, (I,), int64.
        start: id of ``<start>``.

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
