"""The interface of agents, an observation in and an action out as Stable-Baselines3's ``predict()`` has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from glimpse_env.rollout.decode import Policy

Observation = Mapping[str, npt.NDArray[Any]]
Attention = Literal["hard", "soft"]


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
    """Which locations the images of an observation have, bool (B, L); None where all images have all.

    One row for an observation without a leading dimension.
    """
    masks = observation.get("action_mask")
    return None if masks is None else np.atleast_2d(np.asarray(masks)).astype(bool)


class StatelessAgent:
    """An agent without memory: a subclass says with ``act`` what it does, and its state is never changed."""

    def act(self, observation: Observation, deterministic: bool) -> npt.NDArray[Any]:
        """Locations, int64 () or (B,), or weights, float32 (L,) or (B, L)."""
        raise NotImplementedError

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], Any]:
        """What ``act`` chooses, and the state as it came."""
        return self.act(observation, deterministic), state
