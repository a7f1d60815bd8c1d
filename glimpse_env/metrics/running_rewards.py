"""The worth of B captions while they grow: BLEU is counted along, other rewards look at the words anew.

Knows rewards and word ids. It does not know how words are chosen, nor when a reward is paid.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.metrics.incremental_bleu import IncrementalBleu
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward, RewardFn, WeightedSum

Rows = npt.NDArray[np.int64]


class Worth(Protocol):
    """The worth of B captions.

    Attributes:
        kind: what is followed; states go back only to where the same is followed.
    """

    kind: Any

    def begin(self, slots: Rows, rows: Rows) -> None:
        """Start the captions of ``slots`` (B',) anew, on the images ``rows`` (B',)."""
        ...

    def append(self, words: Tensor, said: Tensor | None) -> None:
        """Let the captions ``said`` (B,), bool, None for all, grow by a word of ``words`` (B,), int64."""
        ...

    def scores(self, due: Tensor) -> Tensor:
        """What the captions ``due`` (B,), bool, are worth: (B,), float64; whatever for the others."""
        ...

    def fork(self, parents: Tensor) -> None:
        """Let caption b go on from what caption ``parents[b]``, of the same image, said."""
        ...

    def snapshot(self) -> Any:
        """A copy of all that ``restore`` needs."""
        ...

    def restore(self, state: Any) -> None:
        """Go back to a ``snapshot``."""
        ...


class BleuWorth:
    """A ``BleuReward`` counted along, word by word.

    Args:
        reward: order, smoothing and whether ``<end>`` counts.
        references: of the images.
        captions: B.
        max_length: T, the most words of a caption.
        device: where it is counted.
    """

    def __init__(
        self, reward: BleuReward, references: SplitReferences, captions: int, max_length: int, device: torch.device
    ) -> None:
        table = references.table(len(reward.weights), reward.score_end)
        self._bleu = IncrementalBleu(table, captions, reward.weights, reward.smoothing, max_length, device)
        self._end = references.vocabulary.end
        self._score_end = reward.score_end
        self.kind = ("bleu", reward.weights, reward.smoothing, reward.score_end)

    def begin(self, slots: Rows, rows: Rows) -> None:
        """Start captions anew."""
        self._bleu.begin(slots, rows)

    def append(self, words: Tensor, said: Tensor | None) -> None:
        """Count a word."""
        if not self._score_end:
            spoken = words != self._end
            said = spoken if said is None else said & spoken
        self._bleu.append(words, said)

    def scores(self, due: Tensor) -> Tensor:
        """BLEU of all captions, (B,), float64."""
        return self._bleu.scores()

    def fork(self, parents: Tensor) -> None:
        """Go on from other captions."""
        self._bleu.fork(parents)

    def snapshot(self) -> Any:
        """A copy of the counts."""
        return self._bleu.snapshot()

    def restore(self, state: Any) -> None:
        """Go back to counts."""
        self._bleu.restore(state)


class SumWorth:
    """A ``WeightedSum``: each term is followed in its own way.

    Args:
        terms: weights, and what follows each reward.
    """

    def __init__(self, terms: Sequence[tuple[float, Worth]]) -> None:
        self._terms = tuple(terms)
        self.kind = tuple((weight, worth.kind) for weight, worth in terms)

    def begin(self, slots: Rows, rows: Rows) -> None:
        """Start captions anew."""
        for _, worth in self._terms:
            worth.begin(slots, rows)

    def append(self, words: Tensor, said: Tensor | None) -> None:
        """Follow a word."""
        for _, worth in self._terms:
            worth.append(words, said)

    def scores(self, due: Tensor) -> Tensor:
        """Σ weight · worth, (B,), float64."""
        return sum((weight * worth.scores(due) for weight, worth in self._terms), torch.zeros(()))

    def fork(self, parents: Tensor) -> None:
        """Go on from other captions."""
        for _, worth in self._terms:
            worth.fork(parents)

    def snapshot(self) -> Any:
        """A copy of what every term needs."""
        return [worth.snapshot() for _, worth in self._terms]

    def restore(self, state: Any) -> None:
        """Go back to it."""
        for (_, worth), part in zip(self._terms, state, strict=True):
            worth.restore(part)


class FunctionWorth:
    """Any reward, asked for every caption that is due.

    Args:
        reward: the function.
        references: of the images.
        caption: tells the row, the words without ``<end>``, and whether ``<end>`` was said, of a slot.
    """

    def __init__(
        self, reward: RewardFn, references: SplitReferences, caption: Callable[[int], tuple[int, list[str], bool]]
    ) -> None:
        self._reward, self._references, self._caption = reward, references, caption
        self.kind = ("function", getattr(reward, "__qualname__", type(reward).__qualname__))

    def begin(self, slots: Rows, rows: Rows) -> None:
        """Nothing is kept."""

    def append(self, words: Tensor, said: Tensor | None) -> None:
        """Nothing is kept."""

    def scores(self, due: Tensor) -> Tensor:
        """The reward of each caption that is due, (B,), float64; 0 for the others."""
        scores = torch.zeros(len(due), dtype=torch.float64)
        for slot in due.nonzero().squeeze(1).tolist():
            row, words, ended = self._caption(slot)
            score = self._reward(self._references.references(row), words, ended)
            try:
                scores[slot] = float(score)
            except (TypeError, ValueError) as error:
                raise TypeError(f"reward {self.kind[1]} returned {reprlib.repr(score)}, which is no number") from error
        return scores.to(due.device)

    def fork(self, parents: Tensor) -> None:
        """Nothing is kept."""

    def snapshot(self) -> Any:
        """Nothing is kept."""
        return None

    def restore(self, state: Any) -> None:
        """Nothing is kept."""


def follow(
    reward: RewardFn,
    references: SplitReferences,
    captions: int,
    max_length: int,
    device: torch.device,
    caption: Callable[[int], tuple[int, list[str], bool]],
) -> Worth:
    """What follows a reward along B captions; arguments as those of ``BleuWorth`` and ``FunctionWorth``."""
    if type(reward) is BleuReward:  # a subclass may say otherwise
        return BleuWorth(reward, references, captions, max_length, device)
    if type(reward) is WeightedSum:
        arguments = (references, captions, max_length, device, caption)
        return SumWorth([(weight, follow(term, *arguments)) for weight, term in reward.terms])
    return FunctionWorth(reward, references, caption)
