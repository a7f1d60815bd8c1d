"""Rewards of B captions that grow word by word: BLEU is updated with each word, other rewards read the words again."""

# ruff: noqa: B027 (a reward without a state inherits empty methods)
from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from glimpse_env.core.arrays import Integers
from glimpse_env.metrics.incremental_bleu import IncrementalBleu
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, RewardFn, WeightedSum

# Returns the row, the words without ``<end>``, and whether the caption has ``<end>``, of a slot.
CaptionOf = Callable[[int], tuple[int, list[str], bool]]


class RunningReward(ABC):
    """The reward of B captions that grow; this base class stores nothing."""

    kind: Any  # identifies the reward; a snapshot can only be restored where it is the same

    def begin(self, slots: Integers, rows: Integers) -> None:
        """Start new captions in ``slots`` (B',), of the images ``rows`` (B',)."""

    def append(self, words: Tensor, active: Tensor | None) -> None:
        """Append ``words`` (B,), int64, to the captions ``active`` (B,), bool; None for all."""

    @abstractmethod
    def scores(self, due: Tensor) -> Tensor:
        """Rewards of the captions ``due`` (B,), bool: (B,), float64; those of other captions are undefined."""

    def fork(self, parents: Tensor) -> None:
        """Replace caption b by a copy of caption ``parents[b]``, which is of the same image; (B,), int64."""

    def snapshot(self) -> Any:
        """A copy of the state."""

    def restore(self, state: Any) -> None:
        """Go back to a ``snapshot``."""


class RunningBleu(IncrementalBleu, RunningReward):
    """A ``BleuReward``, updated with each word; arguments as in ``track``."""

    def __init__(
        self, reward: BleuReward, references: SplitReferences, captions: int, max_length: int, device: torch.device
    ) -> None:
        table = references.table(len(reward.weights), reward.score_end)
        super().__init__(table, captions, reward.weights, reward.smoothing, max_length, device)
        self._ignored = None if reward.score_end else references.vocabulary.end
        self.kind = ("bleu", reward.weights, reward.smoothing, reward.score_end)

    def append(self, words: Tensor, active: Tensor | None = None) -> None:
        """Append a word; ``<end>`` only where the reward counts it."""
        if self._ignored is not None:
            counted = words != self._ignored
            active = counted if active is None else active & counted
        super().append(words, active)

    def scores(self, due: Tensor | None = None) -> Tensor:
        """BLEU of all captions, (B,), float64."""
        return super().scores()


class RunningSum(RunningReward):
    """A ``WeightedSum``; ``terms`` are weights and running rewards."""

    def __init__(self, terms: Sequence[tuple[float, RunningReward]]) -> None:
        self._terms = tuple(terms)
        self.kind = tuple((weight, reward.kind) for weight, reward in terms)

    def begin(self, slots: Integers, rows: Integers) -> None:
        """Start new captions."""
        for _, reward in self._terms:
            reward.begin(slots, rows)

    def append(self, words: Tensor, active: Tensor | None) -> None:
        """Append a word."""
        for _, reward in self._terms:
            reward.append(words, active)

    def scores(self, due: Tensor) -> Tensor:
        """Σ weight · reward, (B,), float64."""
        return sum((weight * reward.scores(due) for weight, reward in self._terms), torch.zeros(()))

    def fork(self, parents: Tensor) -> None:
        """Copy captions."""
        for _, reward in self._terms:
            reward.fork(parents)

    def snapshot(self) -> Any:
        """The state of every term."""
        return [reward.snapshot() for _, reward in self._terms]

    def restore(self, state: Any) -> None:
        """Go back to a ``snapshot``."""
        for (_, reward), saved in zip(self._terms, state, strict=True):
            reward.restore(saved)


class RunningFunction(RunningReward):
    """Any reward function, called for every caption that is due; arguments as in ``track``."""

    def __init__(self, reward: RewardFn, references: SplitReferences, caption: CaptionOf) -> None:
        self._reward, self._references, self._caption = reward, references, caption
        self.kind = ("function", getattr(reward, "__qualname__", type(reward).__qualname__))

    def scores(self, due: Tensor) -> Tensor:
        """The reward of each caption that is due, (B,), float64; 0 for the others.

        Raises:
            TypeError: the function returned something that is no number.
        """
        scores = torch.zeros(len(due), dtype=torch.float64)
        for slot in due.nonzero().squeeze(1).tolist():
            row, words, ended = self._caption(slot)
            score = self._reward(self._references.references(row), words, ended)
            try:
                scores[slot] = float(score)
            except (TypeError, ValueError) as error:
                raise TypeError(f"reward {self.kind[1]} returned {reprlib.repr(score)}, which is no number") from error
        return scores.to(due.device)


def track(
    reward: RewardFn,
    references: SplitReferences,
    captions: int,
    max_length: int,
    device: torch.device,
    caption: CaptionOf,
) -> RunningReward:
    """The running reward for a reward.

    Args:
        reward: any reward.
        references: of the images.
        captions: B.
        max_length: T, the most words of a caption.
        device: where counts are held.
        caption: gives the caption of a slot.
    """
    if type(reward) is BleuReward:  # a subclass may compute something else
        return RunningBleu(reward, references, captions, max_length, device)
    if type(reward) is WeightedSum:
        arguments = (references, captions, max_length, device, caption)
        return RunningSum([(weight, track(term, *arguments)) for weight, term in reward.terms])
    return RunningFunction(reward, references, caption)
