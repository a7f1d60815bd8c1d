"""Rewards of B captions, paid at every word or at the end, and the metrics that complete captions report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glimpse_env.core.arrays import Bools, Floats, Integers
from glimpse_env.metrics.batch_bleu import BatchBleu
from glimpse_env.metrics.caption_metrics import caption_scores
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, RewardFn
from glimpse_env.metrics.running_rewards import RunningReward, track
from glimpse_env.rollout.state import EpisodeBatch


class CaptionRewards:
    """The rewards of B captions.

    Arguments are those of ``CaptionDynamics``; ``columns`` are those of ``metric_columns``, ``episodes`` gives B, T
    and the device, and ``read_caption`` the row and words of an episode and whether they end with ``<end>``.
    """

    def __init__(
        self,
        reward: RewardFn | None,
        references: SplitReferences | None,
        columns: dict[str, slice],
        shaped: bool,
        episodes: EpisodeBatch,
        read_caption: Callable[[int], tuple[int, list[str], bool]],
    ) -> None:
        self._shaped, self._device = shaped, episodes.hidden.device
        self._bleu: BatchBleu | None = None  # of complete captions, where the default reward or a metric asks for it
        self._running: RunningReward | None = None  # where the reward is shaped or is not the default one
        self._columns, self._references = columns, None if reward is None else references
        if reward is None or references is None:
            return
        size, max_length = episodes.words.shape
        is_default = not shaped and type(reward) is BleuReward and vars(reward) == vars(BleuReward())
        if is_default or "bleu" in columns:
            self._bleu = BatchBleu(references.table(4, end=True), references.vocabulary.end, 1, max_length)
        if not is_default:
            self._running = track(reward, references, size, max_length, self._device, read_caption)

    @property
    def kind(self) -> Any:
        """Identifies the reward: a snapshot is only restored where it is the same."""
        return (self._references is not None, self._shaped, None if self._running is None else self._running.kind)

    def begin(self, slots: Integers, rows: Integers) -> None:
        """Start the captions of ``slots`` (B',) on the images ``rows`` (B',)."""
        if self._bleu is not None:
            self._bleu.table.prepare(rows)
        if self._running is not None:
            self._running.begin(slots, rows)

    def append(self, words: Tensor, alive: Bools) -> None:
        """Append ``words`` (B,) to the captions that are ``alive`` (B,)."""
        if self._running is not None:
            growing = None if alive.all() else torch.from_numpy(alive).to(self._device)
            self._running.append(words.to(self._device), growing)

    def pay(self, episodes: EpisodeBatch, alive: Bools) -> Floats:
        """Rewards (B,) of the word that was just appended to the captions ``alive`` (B,); updates their scores."""
        rewards = np.zeros(len(alive))
        finished = alive & episodes.ended
        slots = finished.nonzero()[0]
        if self._references is not None and slots.size:
            captions = episodes.rows[slots], episodes.words[slots], episodes.lengths[slots]
            bleu = np.zeros((2, 1, 1)) if self._bleu is None else self._bleu.scores(*captions)  # with <end> and without
            rewards[slots] = bleu[0, :, -1]
            for name, columns in self._columns.items():
                scores = bleu[1] if name == "bleu" else caption_scores(name, self._references, *captions)
                episodes.metrics[slots, columns] = scores
        due = alive if self._shaped else finished
        if self._running is not None and due.any():
            scores = self._running.scores(torch.from_numpy(due).to(self._device)).cpu().numpy()
            rewards[due] = (scores - episodes.running_reward)[due]
            if self._shaped:
                episodes.running_reward[due] = scores[due]
        return rewards

    def fork(self, parents: Tensor) -> None:
        """Replace caption b by a copy of caption ``parents[b]``, of the same image."""
        if self._running is not None:
            self._running.fork(parents.to(self._device))

    def snapshot(self) -> Any:
        """A copy of all that ``restore`` needs."""
        return None if self._running is None else self._running.snapshot()

    def restore(self, state: Any) -> None:
        """Go back to a ``snapshot``."""
        if self._running is not None:
            self._running.restore(state)
