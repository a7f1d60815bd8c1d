"""What is known of B captions in the making: episodes, a copy of them for planning, and what a step brought.

Knows shapes and copies. How episodes change is for the dynamics to say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from glimpse_env.models.decoder import DecoderState

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Episodes(NamedTuple):
    """Everything that changes while B captions are made: the decoder's state on its device, the rest as arrays.

    Attributes:
        hidden: (B, H), float32.
        cell: (B, H), float32.
        rows: image of each episode, (B,), int64.
        words: words said so far, (B, T), int64, ``<pad>`` after the last.
        last: the last of them, ``<start>`` before the first, (B,), int64.
        lengths: number of words said, ``<end>`` included, (B,), int64.
        looked: summed weights of past glimpses, (B, L), float32.
        worth: reward function's value of the caption so far, (B,), float64; only kept when rewards are shaped.
        bleu: BLEU-1 to BLEU-4 (method 1) of complete captions without ``<end>``, (B, 4), float64; 0 until then.
        ended: (B,), bool.
    """

    hidden: Tensor
    cell: Tensor
    rows: Integers
    words: Integers
    last: Integers
    lengths: Integers
    looked: npt.NDArray[np.float32]
    worth: Floats
    bleu: Floats
    ended: Bools

    @property
    def state(self) -> DecoderState:
        """Hidden and cell."""
        return DecoderState(self.hidden, self.cell)

    def copy(self) -> Episodes:
        """The same episodes in memory of their own."""
        parts: list[Any] = [self.hidden.clone(), self.cell.clone(), *(part.copy() for part in self[2:])]
        return Episodes(*parts)

    def picked(self, episodes: Tensor) -> Episodes:
        """Some of them, (B',), int64, in memory of their own."""
        there, here = episodes.to(self.hidden.device), episodes.cpu().numpy()
        parts: list[Any] = [self.hidden[there], self.cell[there], *(part[here] for part in self[2:])]
        return Episodes(*parts)


class Snapshot(NamedTuple):
    """All that ``CaptionDynamics.restore`` needs."""

    episodes: Episodes
    reward: Any
    worth: Any
    projected: Tensor | None


class Transition(NamedTuple):
    """What one step brought.

    Attributes:
        words: the words said, (B,), int64; ``<pad>`` where the episode had ended before.
        rewards: (B,), float64; 0 where the episode had ended before.
        ended: which captions are now complete, (B,), bool.
    """

    words: Integers
    rewards: Floats
    ended: Bools
