"""Gymnasium ids of the registered worlds."""

from __future__ import annotations

import gymnasium as gym

from glimpse_env.datasets.base import DatasetSpec
from glimpse_env.datasets.registry import WORLDS, add_world


def register_world(spec: DatasetSpec) -> None:
    """Register a world, and its environment with Gymnasium; the same world again does nothing.

    Args:
        spec: what environments, training commands and reports read of the world. Commands find a world of another
            package as ``--dataset module:name`` and ``--env module:id``, which import the module that registers it.

    Raises:
        TypeError: it is no ``DatasetSpec``.
        ValueError: its name or its id is taken by another world.
    """
    add_world(spec)
    if spec.env_id not in gym.registry:
        gym.register(
            spec.env_id,
            entry_point="glimpse_env.envs.single:GlimpseEnv",
            vector_entry_point="glimpse_env.envs.vector:GlimpseVectorEnv",
            kwargs={"dataset": spec.name},
        )


def register_environments() -> None:
    """Register the environments of all worlds with Gymnasium."""
    for spec in WORLDS.values():
        register_world(spec)
