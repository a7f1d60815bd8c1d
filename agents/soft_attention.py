"""Soft attention: the differentiable baseline that looks everywhere at once, here more and there less.

Knows how scores become weights. Who trains it, and what is said, is decided elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from agents.base import Attention, AttentionAgent, Observation, batch_size


class SoftAttentionAgent(AttentionAgent):
    """Deterministic soft attention (SAT §4.2): the action is α itself."""

    attention: Attention = "soft"

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.float32], Any]:
        """Weights over locations, float32 (L,) or (B, L): what SAT eq. 13 mixes with."""
        alpha = self.alpha(observation).cpu().numpy()
        return (alpha[0] if batch_size(observation) is None else alpha), state
