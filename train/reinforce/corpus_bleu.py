"""Corpus BLEU-4 as a reward: each caption earns what it adds to the logarithm of the score of the corpus."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import CaptionDataset
from glimpse_env.metrics.bleu import BleuStatistics, corpus_statistics
from train.common.distributed import Processes
from train.reinforce.trajectories import Trajectories


class CorpusBleuReward:
    """Pays ``corpus_gains`` at the end of every caption, at a running mean of the counts of a caption."""

    def __init__(self, dataset: CaptionDataset, vocabulary: Vocabulary) -> None:
        self._dataset, self._vocabulary = dataset, vocabulary
        self.mean: BleuStatistics | None = None  # None before the first batch

    def pay(self, trajectories: Trajectories, rows: np.ndarray, processes: Processes) -> Trajectories:
        """The trajectories of images at ``rows``, (I,), int64, with these rewards; ``mean`` takes in all processes."""
        word_of, no_words = self._vocabulary.words, (self._vocabulary.end, self._vocabulary.blank)
        lengths = trajectories.alive.sum(0)  # (I, K)
        ids = trajectories.words.flatten(1).t().tolist()
        captions = [
            [word_of[word] for word in words[:length] if word not in no_words]
            for words, length in zip(ids, lengths.flatten().tolist(), strict=True)
        ]
        references = [self._dataset.references(row) for row in rows.repeat(lengths.shape[1]).tolist()]
        counts = corpus_statistics(references, captions)
        batch = BleuStatistics(*(processes.gather(count).mean(0).clamp(min=1e-3) for count in counts))
        mean = batch if self.mean is None else self.mean
        self.mean = BleuStatistics(*(0.95 * old + 0.05 * new for old, new in zip(mean, batch, strict=True)))
        gains = corpus_gains(counts, self.mean).float().to(lengths.device).view_as(lengths)
        rewards = torch.zeros_like(trajectories.rewards)
        return trajectories._replace(rewards=rewards.scatter_(0, lengths.unsqueeze(0) - 1, gains.unsqueeze(0)))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"mean": None if self.mean is None else list(self.mean)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a ``state_dict()``."""
        self.mean = None if state_dict["mean"] is None else BleuStatistics(*state_dict["mean"])


def corpus_gains(counts: BleuStatistics, mean: BleuStatistics) -> Tensor:
    """What each caption adds to the logarithm of corpus BLEU, (B,), float64, to first order and times their number.

    The derivative of log BLEU = Σₙ (log matchesₙ − log totalsₙ) / N + min(0, 1 − r / c) by a caption's own counts, at
    the counts of a corpus of such captions, whose ``mean`` has matches above 0.
    """
    precision = (counts.matches / mean.matches - counts.totals / mean.totals).mean(-1)
    ratio = mean.reference_length / mean.length  # r / c
    brevity = ratio * (counts.length / mean.length - counts.reference_length / mean.reference_length)
    return precision + brevity * (ratio > 1)
