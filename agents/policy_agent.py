"""Policies of Stable-Baselines3 that are no plain attention, such as those with a memory: a file, and who plays it.

Knows how a policy that points is kept, made again and asked. It does not know training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.base import Attention, Observation, batch_size
from agents.pointer import GlimpsePolicy, GlimpseQPolicy, MaskableGlimpsePolicy, RecurrentGlimpsePolicy
from glimpse_env.core.safetensors_files import FileFormatError, read_config, read_tensors, write_tensors
from glimpse_env.envs.spaces import action_space, observation_space
from glimpse_env.envs.task import TaskView
from glimpse_env.features.table import FeatureTable

FORMAT = "glimpse-policy-1"
POLICIES: dict[str, Any] = {  # by algorithm
    "ppo": GlimpsePolicy,
    "a2c": GlimpsePolicy,
    "dqn": GlimpseQPolicy,
    "maskable-ppo": MaskableGlimpsePolicy,
    "recurrent-ppo": RecurrentGlimpsePolicy,
}


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy file says its weights are of.

    Attributes:
        algo: the algorithm it was trained with, of ``POLICIES``.
        observe: what it was trained on.
        attention_dim: A, length of a key.
        places: whether every location has a key of its own.
    """

    algo: Literal["ppo", "a2c", "dqn", "maskable-ppo", "recurrent-ppo"]
    observe: Literal["features", "index", "glimpsed"]
    attention_dim: int
    places: bool


class PolicyAgent:
    """A policy of Stable-Baselines3 as ``decode`` asks: annotations are put where observations carry a row.

    Args:
        policy: trained on observations of ``observe``; with ``index``, its table must hold these images.
        features: of the images it is asked about.
        observe: ``features``, ``index`` or ``glimpsed``.
        seed: of what is drawn when it is not deterministic, on the CPU.
    """

    attention: Attention = "hard"

    def __init__(self, policy: Any, features: FeatureTable, observe: str, seed: int = 0) -> None:
        self.policy, self.features, self.observe = policy, features, observe
        self._drawn = torch.Generator().manual_seed(seed).get_state()

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], Any]:
        """Locations, int64 () or (B,), and the policy's new state."""
        seen = dict(observation)
        if self.observe != "index" and "image" in seen:
            rows = seen.pop("image")[..., 0]
            features = self.features[np.atleast_1d(rows)].astype(np.float32)  # (B, L, D)
            seen["features"] = features if batch_size(observation) else features[0]
        if self.observe == "glimpsed":
            seen["features"] = seen["features"] * (seen["glimpses"] > 0)[..., None]
        if deterministic:
            locations, state = self.policy.predict(seen, state, episode_start, True)
            return locations, state
        with torch.random.fork_rng(devices=()):  # Stable-Baselines3 draws from torch's own generator
            torch.random.set_rng_state(self._drawn)
            locations, state = self.policy.predict(seen, state, episode_start, False)
            self._drawn = torch.random.get_rng_state()
        return locations, state

    def fork(self, state: Any, parents: npt.NDArray[np.int64]) -> Any:
        """The memory of episodes ``parents``: an LSTM's has its layers along the first dimension."""
        return tuple(part[:, parents] for part in state)


def save_policy(policy: Any, path: Path, made_of: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write a policy's weights in half precision, atomically.

    Args:
        policy: one of ``POLICIES``.
        path: the file.
        made_of: ``algo`` and ``observe`` it was trained with, ``attention_dim`` and ``places`` of its extractor.
        notes: JSON-able remarks kept in the file, such as the captioner it was trained with.
    """
    metadata = {"format": FORMAT, "policy": dict(made_of), "notes": dict(notes)}
    write_tensors(path, policy.state_dict(), metadata)


def load_policy(path: Path, env: TaskView, seed: int = 0) -> PolicyAgent:
    """Read a policy for an environment, frozen.

    Args:
        path: a file of ``save_policy``.
        env: whose images it will be asked about, hard.
        seed: of what is drawn when it is not deterministic.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is cut off, damaged or of another kind, or its weights are not of its algorithm.
        ValueError: it was trained with a captioner of other sizes.
    """
    tensors, metadata = read_tensors(path, FORMAT)
    try:
        made_of = read_config(PolicyConfig, metadata["policy"])
        policy_class, observe = POLICIES[made_of.algo], made_of.observe
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{str(path)!r}: {error}; fetch or train the agent again") from error
    extractor = {"attention_dim": made_of.attention_dim, "places": made_of.places}
    keys = next((tensor for name, tensor in sorted(tensors.items()) if name.endswith("extractor.key.weight")), None)
    if keys is None or keys.dim() != 2 or not keys.numel() or len(keys) != made_of.attention_dim:
        raise FileFormatError(f"{str(path)!r}: the weights do not fit the sizes beside them; fetch or train it again")
    memory = _memory(path, made_of.algo, tensors)
    # Annotations instead of rows: the same policy, for the images of any split.
    task = replace(env.task, observe="features")
    with torch.random.fork_rng(devices=()):  # the policy draws a start of its own, which the file replaces
        policy = policy_class(
            observation_space(task),
            action_space(task),
            lambda left: 0.0,
            features_extractor_kwargs=extractor,
            **memory,
        )
    expected = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected.keys() != found.keys():
        name = min(expected.keys() ^ found.keys())
        raise FileFormatError(f"{str(path)!r}: {name!r} is missing or too much; fetch or train the agent again")
    other = [name for name in expected if expected[name] != found[name]]
    if other:
        raise ValueError(
            f"policy {str(path)!r} has {other[0]} of shape {found[other[0]]}, but the environment's captioner needs "
            f"{expected[other[0]]}; it was trained with another captioner"
        )
    policy.load_state_dict(tensors)
    policy.to(task.device).requires_grad_(False)
    return PolicyAgent(policy, env.features, "features" if observe == "index" else observe, seed)


def _memory(path: Path, algo: str, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What a policy with a memory is made with besides: its size, as the weights have it.

    Raises:
        FileFormatError: an algorithm without a memory has weights of one, or the other way round.
    """
    lstm = tensors.get("lstm_actor.weight_hh_l0")  # (4 H, H)
    if (lstm is not None) != (algo == "recurrent-ppo"):
        there = "lacks the LSTM of" if lstm is None else "has an LSTM, which does not fit"
        raise FileFormatError(f"{str(path)!r} {there} algorithm {algo!r}; fetch or train the agent again")
    if lstm is None:
        return {}
    if lstm.dim() != 2 or not lstm.numel() or len(lstm) != 4 * lstm.shape[1]:
        raise FileFormatError(
            f"{str(path)!r}: the LSTM's weights are of shape {tuple(lstm.shape)}, expected (4 H, H); fetch or train "
            "the agent again"
        )
    return {"lstm_hidden_size": lstm.shape[1]}
