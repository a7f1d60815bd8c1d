"""Agents by name: shipped ones, controls, files of trained ones and classes of a user's own."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from agents.attention import FORMAT, POLICY_FORMAT, AdditiveAttention, AgentFile, read_agent_file
from agents.attention_agents import Device, HardAttentionAgent, SoftAttentionAgent
from agents.base import Agent, AttentionKind
from agents.scripted import CenterAgent, OracleAgent, RandomAgent, RasterScanAgent, ShuffledAgent, UniformAgent
from glimpse_env.datasets import find_world
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner, captioner_path, load_captioner, shipped_captioners

ASSETS = Path(__file__).parent / "assets"
ATTENTION_MODES = ("soft", "hard", "shuffled")  # how an attention file can act
REWARD_TRAINED = ("reinforce", "self-critical", "ppo")  # hard attention learned from reward, by method
_LEARNED = ("soft", "hard", *REWARD_TRAINED)
AGENT_NAMES = (*_LEARNED, *"no-attention random center raster uniform shuffled oracle".split())


@dataclass(frozen=True)
class AgentSpec:
    """An agent before there is an environment.

    Attributes:
        attention: the kind of action it makes; the environment must be made with it.
        captioner: the captioner that it needs; None when any will do.
        make: makes the agent for an unwrapped environment and a seed.
        seeded: whether another seed changes its actions even when it is deterministic.
    """

    attention: AttentionKind
    captioner: str | None
    make: Callable[[Any, int], Agent]
    seeded: bool = False


def find_agent(name: str, dataset: str) -> AgentSpec:
    """Find an agent for a dataset, and read its weights file where it has one.

    Args:
        name: one of ``AGENT_NAMES``; or an attention file, a policy file or a run directory, for hard attention with
            the captioner that it was trained with; or an attention file, a run directory or a shipped name after
            ``soft:``, ``hard:`` or ``shuffled:``, which selects the kind of attention; or ``module:Class``, a class
            that is called with the unwrapped environment, and with ``seed=`` if it has that argument.
        dataset: the dataset's short name; shipped attention belongs to one.

    Raises:
        ValueError: there is no agent of that name, or it belongs to another environment.
        FileNotFoundError: no attention is shipped for the dataset, or the file does not exist.
        FileFormatError: the file is cut off, damaged or of another kind.
    """
    scripted = {
        "random": AgentSpec("hard", None, lambda env, seed: RandomAgent(env.features.shape[1], seed), True),
        "center": AgentSpec("hard", None, lambda env, seed: CenterAgent(env.captioner.encoder.grid)),
        "raster": AgentSpec("hard", None, lambda env, seed: RasterScanAgent(env.features.shape[1])),
        "uniform": AgentSpec("soft", None, lambda env, seed: UniformAgent(env.features.shape[1])),
        "oracle": AgentSpec("hard", None, lambda env, seed: OracleAgent(env.dataset, env.captioner.vocabulary, env)),
    }
    if name in scripted:
        return scripted[name]
    if name == "no-attention":
        return replace(scripted["uniform"], captioner=f"{dataset}-no-attention")
    mode, colon, source = name.partition(":")
    if mode in ATTENTION_MODES:
        shipped = mode if mode != "shuffled" else "hard" if _is_shipped("hard", dataset) else "soft"
        return _file_spec(mode, *find_attention(source if colon else shipped, dataset))
    if name in REWARD_TRAINED or Path(name).suffix == ".safetensors" or (name and Path(name).is_dir()):
        return _file_spec("hard", *_find_file(name, dataset))
    if source:
        return _import_spec(mode, source)
    raise ValueError(
        f"unknown agent {name!r}; expected one of {', '.join(AGENT_NAMES)}, an attention file or a run directory "
        "(with soft: or shuffled: before it for soft or shuffled attention), or module:Class"
    )


def shipped_attention(name: str, dataset: str) -> Path:
    """The file of a shipped attention: ``soft``, ``hard``, or one learned from reward.

    Raises:
        FileNotFoundError: none is shipped.
    """
    if not _is_shipped(name, dataset):
        commands = {"ppo": "sb3", "reinforce": "reinforce", "self-critical": "reinforce --train-decoder"}
        command = commands.get(name, f"captioner --dataset {dataset}")
        raise FileNotFoundError(
            f"no {name} attention is shipped for {dataset}; train it with `python -m train.{command}` and name its run "
            f"directory, such as runs/{dataset}-{name}"
        )
    return ASSETS / f"{dataset}-{name}.safetensors"


def shipped_agents(dataset: str) -> list[str]:
    """The names of ``AGENT_NAMES`` that work on a dataset without training."""
    usable = {name: _is_shipped(name, dataset) for name in _LEARNED}
    usable["no-attention"] = f"{dataset}-no-attention" in shipped_captioners()
    usable["shuffled"] = usable["soft"] or usable["hard"]
    usable["oracle"] = find_world(dataset).grounded
    return [name for name in AGENT_NAMES if usable.get(name, True)]


def _is_shipped(name: str, dataset: str) -> bool:
    return (ASSETS / f"{dataset}-{name}.safetensors").is_file()


def find_attention(name: str, dataset: str) -> tuple[AgentFile, str | None]:
    """Read an attention, and find the captioner it belongs to, None when any may do.

    A shipped attention belongs to the captioner ``<dataset>-<name>``, else the one it was trained with, else the
    dataset's own.

    Args:
        name: a shipped agent with attention, an attention file, or a run directory.
        dataset: the dataset's short name.

    Raises:
        FileNotFoundError, FileFormatError: as ``find_agent``.
        ValueError: the attention was trained in another environment, or is a policy with more to it.
    """
    file, captioner = _find_file(name, dataset)
    if file.is_policy:
        raise ValueError(
            f"{name!r} is a policy with more to it than attention: it is used by that name alone, without a prefix, "
            "and no training starts from it"
        )
    return file, captioner


def _find_file(name: str, dataset: str) -> tuple[AgentFile, str | None]:
    """As ``find_attention``, but of a policy, too."""
    if name in _LEARNED:
        file, shipped = read_agent_file(shipped_attention(name, dataset)), shipped_captioners()
        candidates = (f"{dataset}-{name}", file.notes.get("captioner"))
        return file, next((captioner for captioner in candidates if captioner in shipped), dataset)
    path = Path(name)
    paths = [path / "attention.safetensors", path / "policy.safetensors"] if path.is_dir() else [path]
    existing = next(filter(Path.is_file, paths), None)
    if existing is None:
        problem = (
            f"run {name!r} has left no attention.safetensors" if path.is_dir() else f"no agent and no file {name!r}"
        )
        raise FileNotFoundError(f"{problem}; train.captioner, train.reinforce and train.sb3 leave one")
    file, env_id = read_agent_file(existing, FORMAT, POLICY_FORMAT), find_world(dataset).env_id
    if file.notes.get("env", env_id) != env_id:
        raise ValueError(f"{str(file.path)!r} was trained in {file.notes['env']}, not in {env_id}")
    captioner = path / "captioner.safetensors"
    return file, str(captioner) if captioner.is_file() else file.notes.get("captioner")


def make_attention_agent(
    kind: AttentionKind, attention: AdditiveAttention, features: FeatureTable, device: Device = "cpu", seed: int = 0
) -> Agent:
    """A soft or hard agent; ``seed`` is of the generator that draws the locations of a hard one."""
    if kind == "soft":
        return SoftAttentionAgent(attention, features, device)
    return HardAttentionAgent(attention, features, device, seed)


def _file_spec(mode: str, file: AgentFile, captioner: str | None) -> AgentSpec:
    kind: AttentionKind = "soft" if mode == "soft" else "hard"

    def make(env: Any, seed: int) -> Agent:
        if file.is_policy:
            from agents.policy_agent import load_policy  # it needs Stable-Baselines3, which takes seconds to import

            return load_policy(file, env, seed)
        attention = file.attention_for(env.captioner)
        if mode == "shuffled":
            return ShuffledAgent(attention, env.features, env.task.device, seed, env)
        return make_attention_agent(kind, attention, env.features, env.task.device, seed)

    return AgentSpec(kind, captioner, make)


def _import_spec(module: str, name: str) -> AgentSpec:
    try:
        agent_class = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        raise ValueError(
            f"no agent class {name!r} in module {module!r}: {type(error).__name__}: {error}; expected module:Class, "
            "found from the folder the command runs in"
        ) from error
    attention = getattr(agent_class, "attention", None)
    if attention not in ("hard", "soft"):
        raise ValueError(f"agent class {module}:{name} must have attention = 'hard' or 'soft', got {attention!r}")
    if not callable(getattr(agent_class, "predict", None)):
        raise ValueError(
            f"agent class {module}:{name} has no method predict(observation, state, episode_start, deterministic); "
            "give it one that returns (action, state)"
        )
    try:
        seeded = "seed" in inspect.signature(agent_class).parameters
    except (TypeError, ValueError):  # a class written in C may have no signature
        seeded = False
    if seeded:
        return AgentSpec(attention, None, lambda env, seed: agent_class(env, seed=seed), seeded=True)
    return AgentSpec(attention, None, lambda env, seed: agent_class(env))


def load_agent(name: str, env: gym.Env[Any, Any], seed: int = 0) -> Agent:
    """Make an agent for an environment.

    Args:
        name: as ``find_agent`` takes it.
        env: the environment it will act in, wrapped or not.
        seed: of the agent's own generator.

    Raises:
        ValueError: there is no such agent, or the environment was made with the other ``attention``.
        FileNotFoundError: the agent's weights are not there.

    Warns:
        UserWarning: the environment was made with another captioner than the agent's.
    """
    unwrapped: Any = env.unwrapped
    spec = find_agent(name, unwrapped.dataset.name)
    if unwrapped.task.attention != spec.attention:
        raise ValueError(
            f"agent {name!r} makes {spec.attention} attention, but the environment was made with "
            f"attention={unwrapped.task.attention!r}; make it with attention={spec.attention!r}"
        )
    own, path = unwrapped.captioner, None if spec.captioner is None else captioner_path(spec.captioner).resolve()
    if path not in (None, unwrapped.task.assets.file) and not _have_same_decoder(own, load_captioner(path)):
        warnings.warn(
            f"agent {name!r} belongs to captioner {str(spec.captioner)!r}, and the environment was made with another; "
            f"make it with captioner={str(spec.captioner)!r}",
            stacklevel=2,
        )
    return spec.make(unwrapped, seed)


def _have_same_decoder(first: Captioner, second: Captioner) -> bool:
    ours, theirs = (captioner.decoder.state_dict() for captioner in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours)
