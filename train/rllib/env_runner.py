"""RLlib's environment runner, with seeds of its own for every environment."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner


class GlimpseRunner(SingleAgentEnvRunner):
    """Seeds each environment of each runner differently.

    RLlib resets the vector of runner w with seed s + w, and a vector seeds environment i with its seed + i, so that
    two runners would draw the same images in all environments but one.
    """

    def _try_env_reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return super()._try_env_reset(seed=None if seed is None else self._seeds(), options=options)

    def _seeds(self) -> list[int]:
        entropy = [self.config.seed, self.worker_index or 0]
        context = ray.get_runtime_context() if ray.is_initialized() else None
        # A runner that replaces a killed one must not repeat its images; the main process is no actor.
        if context and context.worker.mode == ray.WORKER_MODE and context.was_current_actor_reconstructed:
            entropy.append(time.time_ns())
        return np.random.SeedSequence(entropy).generate_state(self.num_envs).tolist()
