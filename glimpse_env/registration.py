"""Gymnasium ids of the registered worlds."""

from __future__ import annotations

import sys

import gymnasium as gym

from glimpse_env.datasets.base import DatasetSpec
from glimpse_env.datasets.registry import WORLDS, add_world
from glimpse_env.metrics.caption_metrics import metric_columns


def register_world(spec: DatasetSpec) -> None:
    """Register a world, and its environment with Gymnasium; the same world again does nothing.

    Other processes that make the environment import the calling module. If that is reloaded, its world is replaced.

    Args:
        spec: what environments, training commands and reports read of the world. Commands find a world of another
            package as ``--dataset module:name`` and ``--env module:id``, which import the module that registers it.

    Raises:
        TypeError: it is no ``DatasetSpec``.
        ValueError: its name or its id is taken, or there is no metric of a name.
    """
    if not isinstance(spec, DatasetSpec):
        raise TypeError(f"a world is registered as a DatasetSpec, got {spec!r}")
    metric_columns(spec.metrics)
    taken, caller = gym.registry.get(spec.env_id), sys._getframe(1).f_globals
    if taken and taken.kwargs.get("dataset", "").split(":")[-1] != spec.name:
        raise ValueError(f"the env_id {spec.env_id!r} is registered already, of {taken.entry_point}; choose another")
    module = caller.get("__name__", "__main__")
    add_world(spec, caller.get("__file__", module))
    if not taken:
        known = module.split(".")[0] in ("glimpse_env", "__main__", "__mp_main__") or module not in sys.modules
        gym.register(
            spec.env_id,
            entry_point="glimpse_env.envs.single:GlimpseEnv",
            vector_entry_point="glimpse_env.envs.vector:GlimpseVectorEnv",
            kwargs={"dataset": spec.name if known else f"{module}:{spec.name}"},
        )


def register_environments() -> None:
    """Register the environments of all worlds with Gymnasium, except for ids that are taken."""
    for spec in WORLDS.values():
        if spec.env_id not in gym.registry:
            register_world(spec)
