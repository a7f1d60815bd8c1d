"""The state of a Stable-Baselines3 algorithm between an update and the next rollout, as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.sb3 import GlimpseVecEnv

COUNTERS = ("num_timesteps", "exploration_rate", "_n_calls", "_n_updates")
REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class AlgorithmState:
    """Gives the state of an algorithm and its environments, and takes it back, to the bit.

    ``model`` is at the start of a rollout of ``envs``. The state does not hold the global generators of torch and
    NumPy, which the algorithms draw from.
    """

    def __init__(self, model: Any, envs: GlimpseVecEnv) -> None:
        self._model, self._envs = model, envs

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers and strings, in dicts and lists."""
        model = self._model
        buffer = getattr(model, "replay_buffer", None)
        return {
            "policy": model.policy.state_dict(),
            "optimiser": model.policy.optimizer.state_dict(),
            "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
            "actions": model.action_space.np_random.bit_generator.state,
            "episodes": None if model._last_obs is None else _to_tensors(self._envs.env.get_state()),
            "observation": _to_tensors(model._last_obs),
            "starts": _to_tensors(model._last_episode_starts),
            "memory": _to_tensors(getattr(model, "_last_lstm_states", None)),
            "replay": None if buffer is None else _replay_state(buffer),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to the state of an algorithm made with the same arguments."""
        model, envs = self._model, self._envs
        model.policy.load_state_dict(state_dict["policy"])
        model.policy.optimizer.load_state_dict(state_dict["optimiser"])
        for name, value in state_dict["counters"].items():
            setattr(model, name, value)
        model.action_space.np_random.bit_generator.state = state_dict["actions"]
        if state_dict["episodes"] is not None:
            model._last_obs = _from_tensors(envs.reset(), state_dict["observation"])
            envs.env.set_state(_from_tensors(envs.env.get_state(), state_dict["episodes"]))
            model._last_episode_starts = np.asarray(state_dict["starts"])
        if state_dict["memory"] is not None:
            model._last_lstm_states = _from_tensors(model._last_lstm_states, state_dict["memory"])
        if state_dict["replay"] is not None:
            _load_replay(model.replay_buffer, state_dict["replay"])


def _to_tensors(value: Any) -> Any:
    """Arrays as tensors, named tuples as lists."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {name: _to_tensors(item) for name, item in value.items()}
    return [_to_tensors(item) for item in value] if isinstance(value, (list, tuple)) else value


def _from_tensors(example: Any, value: Any) -> Any:
    """The inverse of ``_to_tensors``, with the types of an example."""
    if isinstance(example, np.ndarray):
        return value.numpy().copy()
    if isinstance(example, dict):
        return {name: _from_tensors(example[name], item) for name, item in value.items()}
    if isinstance(example, (list, tuple)):
        items = [_from_tensors(*pair) for pair in zip(example, value, strict=True)]
        return type(example)(*items) if hasattr(example, "_fields") else type(example)(items)
    return value.to(example.device) if isinstance(example, Tensor) else value


def _replay_arrays(buffer: Any, name: str) -> dict[str, Any]:
    """The arrays of a replay buffer under a name: one, or one for each key of the observation."""
    arrays = getattr(buffer, name)
    return arrays if isinstance(arrays, dict) else {"": arrays}


def _replay_state(buffer: Any) -> dict[str, Any]:
    """The filled part of a replay buffer, as tensors that share its memory."""
    size, state = buffer.size(), {"position": buffer.pos, "full": buffer.full}
    for name in REPLAY_ARRAYS:
        state[name] = {key: torch.from_numpy(array[:size]) for key, array in _replay_arrays(buffer, name).items()}
    return state


def _load_replay(buffer: Any, state: dict[str, Any]) -> None:
    buffer.pos, buffer.full = state["position"], state["full"]
    for name in REPLAY_ARRAYS:
        for key, array in _replay_arrays(buffer, name).items():
            array[: len(state[name][key])] = state[name][key].numpy()
