"""Agents that attend with learned scores: soft attention, and hard attention, which draws one location a step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.attention import AdditiveAttention, mask_scores
from agents.base import AttentionKind, Observation, StatelessAgent, action_masks
from glimpse_env.features.table import FeatureTable

Device = torch.device | str
_CHUNK = 32  # episodes whose scores are computed together: (32, 49, 256) floats stay in the cache


class AttentionAgent(StatelessAgent):
    """What soft and hard attention share: the weights α = softmax(f_att(a, h)) of SAT eq. 4 and 5.

    Args:
        attention: computes the scores.
        features: the environment's table, for observations that carry a row (``image``) instead of features.
        device: where the scores are computed.
    """

    def __init__(
        self, attention: AdditiveAttention, features: FeatureTable | None = None, device: Device = "cpu"
    ) -> None:
        self.module = attention.to(device).eval()
        self.features = features
        self.device = torch.device(device)
        self._rows: npt.NDArray[np.int64] = np.empty(0, np.int64)  # of the episodes whose keys are cached
        self._keys = torch.empty(0)
        self._version = (0, False)

    @torch.inference_mode()
    def alpha(self, observation: Observation) -> Tensor:
        """α of SAT eq. 5, (B, L), float32, on the agent's device; (1, L) for one without a leading dimension."""
        hidden = torch.as_tensor(observation["hidden"], device=self.device).reshape(-1, self.module.config.hidden_dim)
        keys = self._keys_of(observation)
        starts = range(0, len(keys), _CHUNK)
        scores = torch.cat([self.module.scores(keys[i : i + _CHUNK], hidden[i : i + _CHUNK]) for i in starts])
        masks = action_masks(observation)
        mask = None if masks is None else torch.from_numpy(masks).to(self.device)
        return mask_scores(scores.float(), mask).softmax(-1)

    def _keys_of(self, observation: Observation) -> Tensor:
        """W_a a, (B, L, A), cached while an episode shows the same row."""
        if "features" in observation:
            annotations = torch.as_tensor(observation["features"], device=self.device)
            return self.module.keys(annotations.reshape(-1, *annotations.shape[-2:]).float())
        if self.features is None:
            raise ValueError("the observation carries image rows, not features; give the agent env.unwrapped.features")
        rows = np.asarray(observation["image"]).reshape(-1)
        updates = sum(parameter._version for parameter in self.module.key.parameters())  # grows with training
        version = (updates, torch.is_autocast_enabled(self.device.type))
        if len(rows) != len(self._rows) or version != self._version:
            self._version, self._rows = version, np.full(len(rows), -1)
            shape = len(rows), self.features.shape[1], self.module.config.attention_dim
            self._keys = torch.empty(shape).to(self.device)
        changed = (rows != self._rows).nonzero()[0]
        if len(changed):
            images, which = np.unique(rows[changed], return_inverse=True)
            annotations = torch.from_numpy(self.features[images]).to(self.device).float()
            self._keys[torch.from_numpy(changed)] = self.module.keys(annotations).float()[torch.from_numpy(which)]
            self._rows = rows.copy()
        return self._keys


class SoftAttentionAgent(AttentionAgent):
    """Deterministic soft attention (SAT §4.2): the action is α itself."""

    attention: AttentionKind = "soft"

    def act(self, observation: Observation, deterministic: bool) -> npt.NDArray[np.float32]:
        """Weights α of SAT eq. 13, float32 (B, L)."""
        return self.alpha(observation).cpu().numpy()


class HardAttentionAgent(AttentionAgent):
    """Stochastic hard attention (SAT §4.1): i ~ Categorical(α), or argmax α when deterministic.

    Args:
        attention: computes the scores.
        features: the environment's table, for observations that carry a row.
        device: where the scores are computed.
        seed: of the generator that draws locations.
    """

    attention: AttentionKind = "hard"

    def __init__(
        self, attention: AdditiveAttention, features: FeatureTable | None = None, device: Device = "cpu", seed: int = 0
    ) -> None:
        super().__init__(attention, features, device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def act(self, observation: Observation, deterministic: bool) -> npt.NDArray[np.int64]:
        """Locations, int64 (B,): s_t of SAT eq. 8, or the likeliest."""
        alpha = self.alpha(observation)
        locations = alpha.argmax(-1) if deterministic else sample_locations(alpha, self.generator)
        return locations.cpu().numpy()


def sample_locations(alpha: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Locations (…,), int64, drawn from weights ``alpha`` (…, L): s_t of SAT eq. 8."""
    return torch.multinomial(alpha.flatten(0, -2), 1, generator=generator).reshape(alpha.shape[:-1])


def log_probability(scores: Tensor, locations: Tensor) -> Tensor:
    """Log-probability log α_i (…,), SAT eq. 8, of ``locations`` (…,) under unnormalised ``scores`` (…, L)."""
    return scores.log_softmax(-1).gather(-1, locations.unsqueeze(-1)).squeeze(-1)


def entropy(scores: Tensor) -> Tensor:
    """Entropy H[s] in nats (SAT §4.1), (…,), of the distribution with unnormalised ``scores`` (…, L)."""
    log_alpha = scores.log_softmax(-1)
    return -(log_alpha.exp() * log_alpha).sum(-1)
