"""Policies of Stable-Baselines3 that are more than attention, such as recurrent ones: their files and their agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from agents.attention import POLICY_FORMAT, AgentFile
from agents.base import AttentionKind, Observation, Starts, batch_size
from agents.pointer import GlimpsePolicy, GlimpseQPolicy, MaskableGlimpsePolicy, RecurrentGlimpsePolicy
from glimpse_env.core.safetensors_files import FileFormatError, read_config, write_tensors
from glimpse_env.envs.base import GlimpseBase
from glimpse_env.envs.spaces import action_space, observation_space
from glimpse_env.features.table import FeatureTable

POLICIES: dict[str, Any] = {  # by algorithm
    "ppo": GlimpsePolicy,
    "a2c": GlimpsePolicy,
    "dqn": GlimpseQPolicy,
    "maskable-ppo": MaskableGlimpsePolicy,
    "recurrent-ppo": RecurrentGlimpsePolicy,
}


@dataclass(frozen=True)
class PolicyConfig:
    """The algorithm (of ``POLICIES``) and the observations that a policy was trained with, and its sizes."""

    algo: Literal["ppo", "a2c", "dqn", "maskable-ppo", "recurrent-ppo"]
    observe: Literal["features", "index", "glimpsed"]
    attention_dim: int  # A, length of a key
    places: bool  # whether to add a learned position embedding to every key


class PolicyAgent:
    """A policy of Stable-Baselines3 for observations of any kind: it looks up annotations by their row.

    Args:
        policy: trained on observations of ``observe``; with ``index``, its table must hold these images.
        features: annotations of the images it acts on.
        observe: ``features``, ``index`` or ``glimpsed``.
        seed: of its draws when it is not deterministic, on the CPU.
    """

    attention: AttentionKind = "hard"

    def __init__(self, policy: Any, features: FeatureTable, observe: str, seed: int = 0) -> None:
        self.policy, self.features, self.observe = policy, features, observe
        self._rng_state = torch.Generator().manual_seed(seed).get_state()

    def predict(
        self, observation: Observation, state: Any = None, episode_start: Starts = None, deterministic: bool = False
    ) -> tuple[npt.NDArray[Any], Any]:
        """Locations, int64 () or (B,), and the policy's new state."""
        inputs = dict(observation)
        if self.observe != "index" and "image" in inputs:
            rows = inputs.pop("image")[..., 0]
            features = self.features[np.atleast_1d(rows)].astype(np.float32)  # (B, L, D)
            inputs["features"] = features if batch_size(observation) else features[0]
        if self.observe == "glimpsed":
            inputs["features"] = inputs["features"] * (inputs["glimpses"] > 0)[..., None]
        if deterministic:
            return self.policy.predict(inputs, state, episode_start, True)
        with torch.random.fork_rng(devices=()):  # Stable-Baselines3 draws from torch's own generator
            torch.random.set_rng_state(self._rng_state)
            action = self.policy.predict(inputs, state, episode_start, False)
            self._rng_state = torch.random.get_rng_state()
        return action

    def fork(self, state: Any, parents: npt.NDArray[np.int64]) -> Any:
        """The state of episodes ``parents``: an LSTM's has its layers along the first dimension."""
        return tuple(layers[:, parents] for layers in state)


def save_policy(policy: Any, path: Path, config: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write one of ``POLICIES`` and the fields of its ``PolicyConfig``, as ``save_attention`` writes an attention."""
    write_tensors(path, policy.state_dict(), {"format": POLICY_FORMAT, "policy": dict(config), "notes": dict(notes)})


def load_policy(file: AgentFile, env: GlimpseBase, seed: int = 0) -> PolicyAgent:
    """Make the agent of a policy file for an environment, frozen.

    Args:
        file: written by ``save_policy``.
        env: whose images it acts on, with hard attention.
        seed: of its draws when it is not deterministic.

    Raises:
        FileFormatError: the weights do not fit the configuration beside them.
        ValueError: the policy was trained with a captioner of other sizes.
    """
    tensors = file.tensors
    try:
        config = read_config(PolicyConfig, file.metadata["policy"])
        policy_class = POLICIES[config.algo]
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{str(file.path)!r}: {error}; fetch or train the agent again") from error
    keys = next((tensor for name, tensor in sorted(tensors.items()) if name.endswith("extractor.key.weight")), None)
    if keys is None or keys.dim() != 2 or not keys.numel() or len(keys) != config.attention_dim:
        raise FileFormatError(f"{str(file.path)!r}: the weights do not fit the sizes beside them; fetch or retrain it")
    lstm_size = _lstm_size(file, config.algo)
    task = replace(env.task, observe="features")  # instead of rows: the same policy, for the images of any split
    with torch.random.fork_rng(devices=()):  # the policy draws initial weights, which the file replaces
        policy = policy_class(
            observation_space(task),
            action_space(task),
            lambda progress_remaining: 0.0,
            features_extractor_kwargs={"attention_dim": config.attention_dim, "places": config.places},
            **lstm_size,
        )
    _check_shapes(file, policy)
    policy.load_state_dict(tensors)
    policy.to(task.device).requires_grad_(False)
    return PolicyAgent(policy, env.features, "features" if config.observe == "index" else config.observe, seed)


def _lstm_size(file: AgentFile, algo: str) -> dict[str, int]:
    """The argument of a recurrent policy's constructor; none of another's."""
    lstm = file.tensors.get("lstm_actor.weight_hh_l0")  # (4 H, H)
    if (lstm is not None) != (algo == "recurrent-ppo"):
        problem = "lacks the LSTM of" if lstm is None else "has an LSTM, which does not fit"
        raise FileFormatError(f"{str(file.path)!r} {problem} algorithm {algo!r}; fetch or train the agent again")
    if lstm is None:
        return {}
    if lstm.dim() != 2 or not lstm.numel() or len(lstm) != 4 * lstm.shape[1]:
        raise FileFormatError(
            f"{str(file.path)!r}: the LSTM's weights are of shape {tuple(lstm.shape)}, expected (4 H, H); fetch or "
            "train the agent again"
        )
    return {"lstm_hidden_size": lstm.shape[1]}


def _check_shapes(file: AgentFile, policy: Any) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}
    if expected.keys() != shapes.keys():
        name = min(expected.keys() ^ shapes.keys())
        raise FileFormatError(f"{str(file.path)!r}: {name!r} is missing or too much; fetch or train the agent again")
    for name, shape in expected.items():
        if shape != shapes[name]:
            raise ValueError(
                f"policy {str(file.path)!r} has {name} of shape {shapes[name]}, but the environment's captioner needs "
                f"{shape}; it was trained with another captioner"
            )
