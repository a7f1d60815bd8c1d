"""Timing of calls that take turns, and the steps of environments that are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.features.table import FeatureTable

BLOCK_SECONDS = 0.05  # duration of a block of calls, about


def median_times(calls: list[Callable[[], Any]], blocks: int) -> list[float]:
    """Microseconds of each call, the median over blocks; the calls take turns, so that all see the same machine."""
    counts = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        counts.append(max(int(BLOCK_SECONDS / (time.perf_counter() - start)), 2))
    seconds = np.empty((blocks, len(calls)))
    for block in range(blocks):
        for index, (call, count) in enumerate(zip(calls, counts, strict=True)):
            start = time.perf_counter()
            for _ in range(count):
                call()
            seconds[block, index] = (time.perf_counter() - start) / count
    return [1e6 * float(median) for median in np.median(seconds, 0)]


def warm_up(env: GlimpseEnv | GlimpseVectorEnv) -> None:
    """Encode the features of every image of the split, and prepare its references."""
    _ = env.features[:]
    prepare_references(env)


def prepare_references(env: GlimpseEnv | GlimpseVectorEnv) -> None:
    """Count the n-grams of every reference of the split."""
    env.task.assets.references.table(4, end=True).prepare(np.arange(len(env.dataset)))


class Stepper:
    """Steps a vector of N environments of any kind, or a single one (N = 0), at random locations that all rows have."""

    def __init__(self, env: Any, num_envs: int, features: FeatureTable) -> None:
        self.env, self.num_envs = env, num_envs
        shape = (512, num_envs) if num_envs else (512,)
        common = np.arange(features.shape[1]) if features.masks is None else np.flatnonzero(features.masks.all(0))
        if not common.size:
            raise ValueError("images of this world share no location; time a world whose images share one")
        self._actions = common[np.random.default_rng(0).integers(len(common), size=shape)]
        self._single, self._next = not num_envs, 0
        if isinstance(env, (gym.Env, VectorEnv)):
            env.reset(seed=0)
        else:
            env.seed(0)
            env.reset()

    def step(self) -> None:
        """One step of every environment."""
        self._next = (self._next + 1) % len(self._actions)
        action = self._actions[self._next]
        if not self._single:
            self.env.step(action)
        elif self.env.step(int(action))[2]:
            self.env.reset()

    def desynchronise(self) -> None:
        """Step until the episodes begin at different steps."""
        for _ in range(40):
            self.step()
