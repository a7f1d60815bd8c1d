"""A process of RLlib's that steps environments, whose captions begin at images that no other runner draws.

Knows RLlib's runners and seeds. It does not know what is learned.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner


class GlimpseRunner(SingleAgentEnvRunner):
    """Seeds every environment of every runner apart.

    RLlib resets the vector of runner w with s + w, and a vector seeds environment i with what it is given + i: all but
    one of the environments of two runners would draw the same images.
    """

    def _try_env_reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        seeds = None if seed is None else self._seeds()
        found: tuple[Any, Any] = super()._try_env_reset(seed=seeds, options=options)
        return found

    def _seeds(self) -> list[int]:
        own = [self.config.seed, self.worker_index or 0]
        context = ray.get_runtime_context() if ray.is_initialized() else None
        # One that takes a killed runner's place goes on, rather than begin again; the main process is no actor.
        if context and context.worker.mode == ray.WORKER_MODE and context.was_current_actor_reconstructed:
            own.append(time.time_ns())
        seeds: list[int] = np.random.SeedSequence(own).generate_state(self.num_envs).tolist()
        return seeds
