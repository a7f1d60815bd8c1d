"""A run of Stable-Baselines3 between an update and the next rollout: all that its next step depends on, as tensors.

Knows what the algorithms and the environments keep, and where. It does not know files, schedules or when to save.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.sb3 import GlimpseVecEnv

COUNTERS = ("num_timesteps", "exploration_rate", "_n_calls", "_n_updates")
REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def snapshot(model: Any, envs: GlimpseVecEnv) -> dict[str, Any]:
    """What ``restore`` needs: tensors, numbers and words, in dicts and lists.

    Torch's and NumPy's global generators, which the algorithms draw from, are for the caller to keep.

    Args:
        model: an algorithm at the start of a rollout.
        envs: its environments.
    """
    buffer = getattr(model, "replay_buffer", None)
    return {
        "policy": model.policy.state_dict(),
        "optimiser": model.policy.optimizer.state_dict(),
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "actions": model.action_space.np_random.bit_generator.state,
        "episodes": None if model._last_obs is None else _plain(envs.env.get_state()),
        "observation": _plain(model._last_obs),
        "starts": _plain(model._last_episode_starts),
        "memory": _plain(getattr(model, "_last_lstm_states", None)),
        "replay": None if buffer is None else _filled(buffer),
    }


def restore(model: Any, envs: GlimpseVecEnv, state: dict[str, Any]) -> None:
    """Let an algorithm made alike go on where the other stood, to the bit.

    Args:
        model: made with the same arguments.
        envs: its environments.
        state: of ``snapshot``.
    """
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimiser"])
    for name, value in state["counters"].items():
        setattr(model, name, value)
    model.action_space.np_random.bit_generator.state = state["actions"]
    if state["episodes"] is not None:
        model._last_obs = _like(envs.reset(), state["observation"])
        envs.env.set_state(_like(envs.env.get_state(), state["episodes"]))
        model._last_episode_starts = np.asarray(state["starts"])
    if state["memory"] is not None:
        model._last_lstm_states = _like(model._last_lstm_states, state["memory"])
    if state["replay"] is not None:
        _fill(model.replay_buffer, state["replay"])


def _plain(value: Any) -> Any:
    """Arrays as tensors, named tuples as lists."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _like(example: Any, value: Any) -> Any:
    """What ``_plain`` was made of; of the example only the kinds count."""
    if isinstance(example, np.ndarray):
        return value.numpy().copy()
    if isinstance(example, dict):
        return {name: _like(example[name], part) for name, part in value.items()}
    if isinstance(example, (list, tuple)):
        parts = [_like(one, part) for one, part in zip(example, value, strict=True)]
        return type(example)(*parts) if hasattr(example, "_fields") else type(example)(parts)
    return value.to(example.device) if isinstance(example, Tensor) else value


def _filled(buffer: Any) -> dict[str, Any]:
    """What a replay buffer holds, as tensors over its own memory."""
    held = buffer.size()

    def part(values: Any) -> Tensor | dict[str, Tensor]:
        if isinstance(values, dict):
            return {name: torch.from_numpy(one[:held]) for name, one in values.items()}
        return torch.from_numpy(values[:held])

    return {"place": buffer.pos, "full": buffer.full, **{name: part(getattr(buffer, name)) for name in REPLAYED}}


def _fill(buffer: Any, state: dict[str, Any]) -> None:
    buffer.pos, buffer.full = state["place"], state["full"]
    for name in REPLAYED:
        kept, held = getattr(buffer, name), state[name]
        for values, new in [(kept[key], held[key]) for key in held] if isinstance(held, dict) else [(kept, held)]:
            values[: len(new)] = new.numpy()
