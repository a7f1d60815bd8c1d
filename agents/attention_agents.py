"""Hard attention: one location a word, drawn from the same weights that soft attention would mix with.

Knows how a location is drawn, its log-probability and the entropy. It does not know how it is trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.attention import AdditiveAttention
from agents.base import Attention, AttentionAgent, Observation, batch_size
from glimpse_env.features.table import FeatureTable


class HardAttentionAgent(AttentionAgent):
    """Stochastic hard attention (SAT §4.1): i ~ Categorical(α), or argmax α when deterministic.

    Args:
        attention: the scores.
        features: the environment's table, for observations that carry a row.
        device: where the scores are computed.
        seed: of the generator that draws locations.
    """

    attention: Attention = "hard"

    def __init__(
        self,
        attention: AdditiveAttention,
        features: FeatureTable | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(attention, features, device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.int64], Any]:
        """Locations, int64 () or (B,): s_t of SAT eq. 8, or the likeliest."""
        alpha = self.alpha(observation)
        chosen = alpha.argmax(-1) if deterministic else sample_locations(alpha, self.generator)
        locations = chosen.cpu().numpy()
        return (locations[0] if batch_size(observation) is None else locations), state


def sample_locations(alpha: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Locations (…,), int64, drawn from weights ``alpha`` (…, L): s_t of SAT eq. 8."""
    drawn = torch.multinomial(alpha.flatten(0, -2), 1, generator=generator)
    return drawn.reshape(alpha.shape[:-1])


def log_probability(scores: Tensor, locations: Tensor) -> Tensor:
    """Log-probability log α_i (…,), SAT eq. 8, of ``locations`` (…,) under unnormalised ``scores`` (…, L)."""
    return scores.log_softmax(-1).gather(-1, locations.unsqueeze(-1)).squeeze(-1)


def entropy(scores: Tensor) -> Tensor:
    """Entropy H[s] in nats (SAT §4.1), (…,), of the distribution with unnormalised ``scores`` (…, L)."""
    log_alpha = scores.log_softmax(-1)
    return -(log_alpha.exp() * log_alpha).sum(-1)


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
