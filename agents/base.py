"""What an agent is: an observation in, an action out, with the signature of Stable-Baselines3's ``predict()``.

Knows the observations of the environment, single or batched. It does not know how an agent makes up its mind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.attention import AdditiveAttention
from glimpse_env.features.table import FeatureTable
from glimpse_env.rollout.decode import Policy

Observation = Mapping[str, npt.NDArray[Any]]
Attention = Literal["hard", "soft"]
PART = 32  # episodes whose scores are computed together: (32, 49, 256) floats stay in the cache


class Agent(Policy, Protocol):
    """Chooses where to look: a ``Policy`` that takes one observation without a leading dimension, too.

    ``predict(observation, state, episode_start, deterministic)`` returns a location, int64 () or (B,), or weights,
    float32 (L,) or (B, L), and the new state.
    """


def batch_size(observation: Observation) -> int | None:
    """Number of environments a Dict observation is of; None for one environment without a leading dimension."""
    word = np.asarray(observation["word"])
    return None if word.ndim == 1 else len(word)


class AttentionAgent:
    """What soft and hard attention share: the weights α = softmax(f_att(a, h)) of SAT eq. 4 and 5.

    Args:
        attention: the scores.
        features: the environment's table, for observations that carry a row (``image``) instead of features.
        device: where the scores are computed.
    """

    def __init__(
        self,
        attention: AdditiveAttention,
        features: FeatureTable | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.module = attention.to(device).eval()
        self.features = features
        self.device = torch.device(device)
        self._rows: npt.NDArray[np.int64] = np.empty(0, np.int64)  # of the episodes whose keys are kept
        self._keys = torch.empty(0)
        self._version = (0, False)

    @torch.inference_mode()
    def alpha(self, observation: Observation) -> Tensor:
        """α of SAT eq. 5, (B, L), float32, on the agent's device; (1, L) for one without a leading dimension."""
        hidden = torch.as_tensor(observation["hidden"], device=self.device).reshape(-1, self.module.config.hidden_dim)
        keys = self._keys_of(observation)
        parts = [self.module.scores(keys[i : i + PART], hidden[i : i + PART]) for i in range(0, len(keys), PART)]
        return torch.cat(parts).float().softmax(-1)

    def _keys_of(self, observation: Observation) -> Tensor:
        """W_a a, (B, L, A): what an image adds to the scores, kept while an episode shows the same row."""
        if "features" in observation:
            annotations = torch.as_tensor(observation["features"], device=self.device)
            return self.module.keys(annotations.reshape(-1, *annotations.shape[-2:]).float())
        if self.features is None:
            raise ValueError("the observation carries image rows, not features; give the agent env.unwrapped.features")
        rows = np.asarray(observation["image"]).reshape(-1)
        trained = sum(parameter._version for parameter in self.module.key.parameters())  # grows when they are
        version = (trained, torch.is_autocast_enabled(self.device.type))
        if len(rows) != len(self._rows) or version != self._version:
            self._version = version
            self._rows = np.full(len(rows), -1)
            self._keys = torch.empty(len(rows), self.features.shape[1], self.module.config.attention_dim)
            self._keys = self._keys.to(self.device)
        changed = (rows != self._rows).nonzero()[0]
        if len(changed):
            images, which = np.unique(rows[changed], return_inverse=True)
            annotations = torch.from_numpy(self.features[images]).to(self.device).float()
            self._keys[torch.from_numpy(changed)] = self.module.keys(annotations).float()[torch.from_numpy(which)]
            self._rows = rows.copy()
        return self._keys
