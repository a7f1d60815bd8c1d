"""The interface of agents, an observation in and an action out as Stable-Baselines3's ``predict()`` has it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from glimpse_env.rollout.decode import Policy

Observation = Mapping[str, npt.NDArray[Any]]
AttentionKind = Literal["hard", "soft"]
Starts = npt.NDArray[np.bool_] | None  # which episodes start with the observation, (B,)


class Agent(Policy, Protocol):
    """Chooses where to look: a ``Policy`` that takes one observation without a leading dimension, too.

    ``predict(observation, state, episode_start, deterministic)`` returns a location, int64 () or (B,), or weights,
    float32 (L,) or (B, L), and the new state.
    """


def batch_size(observation: Observation) -> int | None:
    """Number of environments a Dict observation is of; None for one environment without a leading dimension."""
    word = np.asarray(observation["word"])
    return None if word.ndim == 1 else len(word)


def action_masks(observation: Observation) -> npt.NDArray[np.bool_] | None:
    """Which locations the images of an observation have, bool (B, L) with B ≥ 1; None where all images have all."""
    masks = observation.get("action_mask")
    return None if masks is None else np.atleast_2d(np.asarray(masks)).astype(bool)


class StatelessAgent(ABC):
    """An agent without memory: subclasses implement ``act``, and ``predict`` returns the state unchanged."""

    @abstractmethod
    def act(self, observation: Observation, deterministic: bool) -> npt.NDArray[Any]:
        """Locations, int64 (B,), or weights, float32 (B, L); B is 1 without a leading dimension."""

    def predict(
        self, observation: Observation, state: Any = None, episode_start: Starts = None, deterministic: bool = False
    ) -> tuple[npt.NDArray[Any], Any]:
        """What ``act`` chooses, without a leading dimension if the observation has none, and the state as it came."""
        actions = self.act(observation, deterministic)
        return actions[0] if batch_size(observation) is None else actions, state
