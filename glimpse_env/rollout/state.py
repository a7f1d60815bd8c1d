"""The state of B episodes, a snapshot of it for planning, and the result of a step."""

from __future__ import annotations

import reprlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.core.arrays import Bools, Floats, Integers
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.models.decoder import DecoderState


class EpisodeBatch(NamedTuple):
    """Everything that changes during B episodes: the decoder's state on its device, the rest as NumPy arrays.

    Attributes:
        hidden: (B, H), float32.
        cell: (B, H), float32.
        rows: image of each episode, (B,), int64.
        words: the caption so far, (B, T), int64, ``<pad>`` after the last word.
        last: the last word, ``<blank>`` after a silent step, ``<start>`` before the first step, (B,), int64.
        lengths: words of the caption so far, ``<end>`` included, (B,), int64.
        steps: steps so far, (B,), int64: words, and silent steps (``<blank>``), which add none.
        attention_sum: summed weights of past glimpses, (B, L), float32.
        running_reward: the reward function's value of the caption so far, (B,), float64; 0 unless rewards are shaped.
        metrics: what is reported of complete captions, (B, M), float64; 0 until then.
        ended: (B,), bool.
    """

    hidden: Tensor
    cell: Tensor
    rows: Integers
    words: Integers
    last: Integers
    lengths: Integers
    steps: Integers
    attention_sum: npt.NDArray[np.float32]
    running_reward: Floats
    metrics: Floats
    ended: Bools

    @classmethod
    def empty(
        cls,
        size: int,
        hidden_dim: int,
        max_length: int,
        locations: int,
        num_metrics: int,
        vocabulary: Vocabulary,
        device: torch.device,
    ) -> EpisodeBatch:
        """B = ``size`` episodes that have ended, and wait for their first image."""
        return cls(
            hidden=torch.zeros(size, hidden_dim, device=device),
            cell=torch.zeros(size, hidden_dim, device=device),
            rows=np.zeros(size, np.int64),
            words=np.full((size, max_length), vocabulary.pad),
            last=np.full(size, vocabulary.start),
            lengths=np.zeros(size, np.int64),
            steps=np.zeros(size, np.int64),
            attention_sum=np.zeros((size, locations), np.float32),
            running_reward=np.zeros(size),
            metrics=np.zeros((size, num_metrics)),
            ended=np.ones(size, bool),
        )

    @property
    def state(self) -> DecoderState:
        """Hidden and cell."""
        return DecoderState(self.hidden, self.cell)

    def copy(self) -> EpisodeBatch:
        """A deep copy."""
        arrays: list[Any] = [array.copy() for array in self[2:]]
        return EpisodeBatch(self.hidden.clone(), self.cell.clone(), *arrays)

    def select(self, slots: Tensor) -> EpisodeBatch:
        """A deep copy of the episodes ``slots``, (B',), int64."""
        on_device, on_host = slots.to(self.hidden.device), slots.cpu().numpy()
        arrays: list[Any] = [array[on_host] for array in self[2:]]
        return EpisodeBatch(self.hidden[on_device], self.cell[on_device], *arrays)


class Snapshot(NamedTuple):
    """All that ``CaptionDynamics.restore`` needs.

    Attributes:
        episodes: a copy.
        reward_kind: identifies the reward; a snapshot is only restored where it is the same.
        reward_state: a snapshot of the reward, None where it has no state.
        projected: projected annotations of soft attention, None for hard attention.
    """

    episodes: EpisodeBatch
    reward_kind: Any
    reward_state: Any
    projected: Tensor | None

    def check_fits(self, episodes: EpisodeBatch, reward_kind: Any, attention: str, num_images: int) -> None:
        """Check that a snapshot can replace ``episodes``.

        Raises:
            ValueError: it differs in its reward, its attention or its sizes, or is of images that do not exist.
        """
        if not isinstance(self.episodes, EpisodeBatch):
            raise ValueError(f"state is not one of get_state: {reprlib.repr(self.episodes)} are no episodes")
        if self.reward_kind != reward_kind:
            raise ValueError("state is of captions with another reward; take it from an environment made alike")
        if (self.projected is None) != (attention == "hard"):
            raise ValueError(f"state is not of {attention} attention; take it from an environment made alike")
        for name in EpisodeBatch._fields:
            expected, shape = (tuple(getattr(batch, name).shape) for batch in (episodes, self.episodes))
            if expected != shape:
                raise ValueError(f"state holds {name} of shape {shape}, expected {expected}")
        rows = self.episodes.rows
        if not ((rows >= 0) & (rows < num_images)).all():
            raise ValueError("state is of images that are not in this split; take it from an environment made alike")


class Transition(NamedTuple):
    """The result of one step.

    Attributes:
        words: the new word of each episode, (B,), int64; ``<blank>`` for a silent step, ``<pad>`` where the episode had
            ended before.
        rewards: (B,), float64; 0 where the episode had ended before.
        ended: which captions are now complete, (B,), bool.
    """

    words: Integers
    rewards: Floats
    ended: Bools
