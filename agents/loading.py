"""Agents by name: what each must be played on, and how it is made for an environment.

Knows the names and the shipped files. It does not know training or scoring.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from agents.attention import AdditiveAttention, attention_notes, load_attention
from agents.attention_agents import HardAttentionAgent, SoftAttentionAgent
from agents.base import Agent, Attention
from agents.scripted import CenterAgent, OracleAgent, RandomAgent, RasterScanAgent, ShuffledAgent, UniformAgent
from glimpse_env.core.safetensors_files import read_metadata, read_notes
from glimpse_env.datasets import WORLDS
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner, load_captioner, shipped_captioners
from glimpse_env.registration import IDS

ASSETS = Path(__file__).parent / "assets"
PLAYED = ("soft", "hard", "shuffled")  # ways to play an attention file
LEARNED = ("reinforce", "self-critical", "ppo")  # hard attention learned from reward, by how
CONTROLS = ("no-attention", "random", "center", "raster", "uniform", "shuffled", "oracle")
IDS_OF = {dataset: name for name, dataset in IDS.items()}  # of the environments
AGENT_NAMES = ("soft", "hard", *LEARNED, *CONTROLS)


@dataclass(frozen=True)
class AgentSpec:
    """What is known of an agent before there is an environment.

    Attributes:
        attention: the kind of action it makes; the environment must be made with it.
        captioner: the captioner it must be played on; None when any will do.
        make: makes the agent for an unwrapped environment and a seed.
        seeded: whether it looks elsewhere with another seed even when it is deterministic.
    """

    attention: Attention
    captioner: str | None
    make: Callable[[Any, int], Agent]
    seeded: bool = False


def find_agent(name: str, dataset: str) -> AgentSpec:
    """Find an agent for a dataset.

    Args:
        name: one of ``AGENT_NAMES``; an attention or policy file or a run directory, played hard on the captioner it
            belongs to, or, an attention, as ``soft:PATH`` or ``shuffled:PATH``, otherwise (``hard:soft`` is the argmax
            of the shipped soft attention); or ``module:Class`` for a class that is made with the unwrapped environment,
            and with ``seed=`` when it takes one.
        dataset: the dataset's short name; shipped attention belongs to one.

    Raises:
        ValueError: there is no agent of that name.
        FileNotFoundError: no attention is shipped for the dataset, or the file does not exist.
    """
    scripted: dict[str, AgentSpec] = {
        "random": AgentSpec("hard", None, lambda env, seed: RandomAgent(env.features.shape[1], seed), True),
        "center": AgentSpec("hard", None, lambda env, seed: CenterAgent(env.captioner.encoder.config.grid)),
        "raster": AgentSpec("hard", None, lambda env, seed: RasterScanAgent(env.features.shape[1])),
        "uniform": AgentSpec("soft", None, lambda env, seed: UniformAgent(env.features.shape[1])),
        "oracle": AgentSpec("hard", None, lambda env, seed: OracleAgent(env.dataset, env.captioner.vocabulary, env)),
        "no-attention": AgentSpec(
            "soft", f"{dataset}-no-attention", lambda env, seed: UniformAgent(env.features.shape[1])
        ),
    }
    if name in scripted:
        return scripted[name]
    prefix, _, rest = name.partition(":")
    policy = find_policy(name)
    if policy is not None:
        return _policy_spec(policy, dataset)
    if name in PLAYED:
        return _attention_spec(name, *find_start(_shuffled_source(dataset) if name == "shuffled" else name, dataset))
    if prefix in PLAYED:
        return _attention_spec(prefix, *find_start(rest, dataset))
    if name in LEARNED or Path(name).suffix == ".safetensors" or (name and Path(name).is_dir()):
        return _attention_spec("hard", *find_start(name, dataset))
    if rest:
        return _import_spec(prefix, rest)
    raise ValueError(
        f"unknown agent {name!r}; expected one of {', '.join(AGENT_NAMES)}, an attention file or a run directory "
        "(played softly or shuffled with soft: or shuffled: before it), or module:Class"
    )


def find_policy(name: str) -> Path | None:
    """The policy file of a run directory that has left one instead of an attention, or the file itself; else None.

    Raises:
        FileFormatError: a weights file is cut off or damaged.
    """
    path = Path(name)
    if name and path.is_dir():
        file = path / "policy.safetensors"
        return file if file.is_file() and not (path / "attention.safetensors").is_file() else None
    is_policy = path.suffix == ".safetensors" and path.is_file() and "policy" in read_metadata(path)
    return path if is_policy else None


def shipped_attention(name: str, dataset: str) -> Path:
    """The file of a shipped attention: ``soft``, ``hard``, or one learned from reward.

    Raises:
        FileNotFoundError: none is shipped.
    """
    path = ASSETS / f"{dataset}-{name}.safetensors"
    if not path.is_file():
        commands = {"ppo": "sb3", "reinforce": "reinforce", "self-critical": "reinforce --train-decoder"}
        command = commands.get(name, f"captioner --dataset {dataset}")
        raise FileNotFoundError(
            f"no {name} attention is shipped for {dataset}; train it with `python -m train.{command}` and name its run "
            f"directory, such as runs/{dataset}-{name}"
        )
    return path


def shipped_agents(dataset: str) -> list[str]:
    """The names of ``AGENT_NAMES`` that can play on a dataset as shipped."""
    there = {name: (ASSETS / f"{dataset}-{name}.safetensors").is_file() for name in ("soft", "hard", *LEARNED)}
    there["no-attention"] = f"{dataset}-no-attention" in shipped_captioners()
    there["shuffled"] = there["soft"] or there["hard"]
    there["oracle"] = dataset in WORLDS
    return [name for name in AGENT_NAMES if there.get(name, True)]


def _shuffled_source(dataset: str) -> str:
    """Whose attention is shuffled: hard attention's, or soft attention's where no hard one is shipped."""
    return "hard" if (ASSETS / f"{dataset}-hard.safetensors").is_file() else "soft"


def find_start(name: str, dataset: str) -> tuple[Path, str | None]:
    """The attention file to go on from, and the captioner it belongs to, None when any may do.

    Args:
        name: a shipped agent with attention, an attention file, or a run directory.
        dataset: the dataset's short name.

    Raises:
        FileNotFoundError: there is no such agent, file or run.
        ValueError: the attention was trained in another environment, or is a policy with more to it.
    """
    if name in ("soft", "hard", *LEARNED):
        return shipped_attention(name, dataset), own_captioner(name, dataset)
    if find_policy(name) is not None:
        raise ValueError(
            f"{name!r} is a policy with more to it than attention: it is played as it is, by that name alone, and "
            "nothing starts from it"
        )
    path = Path(name)
    own = path / "captioner.safetensors"
    file = path / "attention.safetensors" if path.is_dir() else path
    if not file.is_file():
        what = f"run {name!r} has left no attention.safetensors" if path.is_dir() else f"no agent and no file {name!r}"
        raise FileNotFoundError(f"{what}; train.captioner, train.reinforce and train.sb3 leave one")
    notes = attention_notes(file)
    _check_env(file, notes, dataset)
    return file, str(own) if path.is_dir() and own.is_file() else notes.get("captioner")


def _check_env(file: Path, notes: dict[str, Any], dataset: str) -> None:
    if notes.get("env", IDS_OF[dataset]) != IDS_OF[dataset]:
        raise ValueError(f"{str(file)!r} was trained in {notes['env']}, not in {IDS_OF[dataset]}")


def own_captioner(name: str, dataset: str) -> str:
    """The shipped captioner a shipped agent is played on.

    ``<dataset>-<name>``, else the one it was trained with, else the dataset's own.
    """
    noted = attention_notes(shipped_attention(name, dataset)).get("captioner")
    shipped = shipped_captioners()
    return next((one for one in (f"{dataset}-{name}", noted) if one in shipped), dataset)


def make_attention_agent(
    kind: Attention,
    path: Path,
    captioner: Captioner,
    features: FeatureTable,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Agent:
    """An agent with the attention of a file.

    Args:
        kind: soft or hard.
        path: the attention file.
        captioner: the captioner it will be played on.
        features: the environment's table.
        device: where scores are computed.
        seed: of the generator that draws locations.

    Raises:
        ValueError: the attention was trained with a captioner of other sizes.
    """
    module = load_fitting_attention(path, captioner)
    if kind == "soft":
        return SoftAttentionAgent(module, features, device)
    return HardAttentionAgent(module, features, device, seed)


def load_fitting_attention(path: Path, captioner: Captioner) -> AdditiveAttention:
    """Read attention weights for a captioner.

    Raises:
        ValueError: they were trained with a captioner of other sizes.
    """
    module = load_attention(path)
    expected = (captioner.decoder.config.feature_dim, captioner.decoder.config.hidden_dim)
    found = (module.config.feature_dim, module.config.hidden_dim)
    if expected != found:
        raise ValueError(
            f"attention {str(path)!r} reads annotations and states of lengths {found}, but the environment's "
            f"captioner has {expected}; it was trained with another captioner"
        )
    return module


def _attention_spec(played: str, path: Path, captioner: str | None = None) -> AgentSpec:
    if played == "shuffled":
        return AgentSpec("hard", captioner, lambda env, seed: _make_shuffled(path, env, seed))
    kind: Attention = "soft" if played == "soft" else "hard"
    return AgentSpec(
        kind,
        captioner,
        lambda env, seed: make_attention_agent(kind, path, env.captioner, env.features, env.task.device, seed),
    )


def _policy_spec(path: Path, dataset: str) -> AgentSpec:
    notes = read_notes(path, read_metadata(path))
    _check_env(path, notes, dataset)

    def make(env: Any, seed: int) -> Agent:
        from agents.policy_agent import load_policy  # it needs Stable-Baselines3, which takes seconds to import

        return load_policy(path, env, seed)

    return AgentSpec("hard", notes.get("captioner"), make)


def _make_shuffled(path: Path, env: Any, seed: int) -> ShuffledAgent:
    return ShuffledAgent(load_fitting_attention(path, env.captioner), env.features, env.task.device, seed, env)


def _import_spec(module: str, name: str) -> AgentSpec:
    try:
        agent_class = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # somebody's module may raise anything when it is imported
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
    if not _takes_seed(agent_class):
        return AgentSpec(attention, None, lambda env, seed: agent_class(env))
    return AgentSpec(attention, None, lambda env, seed: agent_class(env, seed=seed), seeded=True)


def _takes_seed(agent_class: Any) -> bool:
    try:
        return "seed" in inspect.signature(agent_class).parameters
    except (TypeError, ValueError):  # one that is written in C may not tell
        return False


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
    bare: Any = env.unwrapped
    spec = find_agent(name, bare.dataset.name)
    if bare.task.attention != spec.attention:
        raise ValueError(
            f"agent {name!r} makes {spec.attention} attention, but the environment was made with "
            f"attention={bare.task.attention!r}; make it with attention={spec.attention!r}"
        )
    if spec.captioner is not None and not _same_words(bare.captioner, load_captioner(spec.captioner)):
        warnings.warn(
            f"agent {name!r} belongs to captioner {str(spec.captioner)!r}, and the environment was made with another; "
            f"make it with captioner={str(spec.captioner)!r}",
            stacklevel=2,
        )
    return spec.make(bare, seed)


def _same_words(one: Captioner, other: Captioner) -> bool:
    mine, theirs = (captioner.decoder.state_dict() for captioner in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine)
