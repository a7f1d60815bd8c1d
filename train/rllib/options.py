"""Options of ``train.rllib``, and their defaults by algorithm. Ray is not imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from glimpse_env.core.checks import check_count, check_number
from glimpse_env.datasets import world_of
from glimpse_env.models.captioner import shipped_captioners
from train.common.options import CommonOptions


@dataclass
class Options(CommonOptions):
    """Train where to look with Ray RLlib: one machine or many, by flag. What is left at None follows the algorithm."""

    MAY_CHANGE = (*CommonOptions.MAY_CHANGE, "runners", "learners", "address")
    WEIGHTS_FILES = ("attention.safetensors",)

    device: str = "cpu"
    """Torch device on which val is scored; --gpus and --runner-gpus say where is learned and stepped."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Score only the first N images of val; training draws from all of train."""
    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    algo: Literal["ppo", "impala"] = "ppo"
    """Algorithm."""
    captioner: str | None = None
    """Shipped captioner or file, at the same place on every machine; by default the dataset's own."""
    reward: str = "bleu"
    """The environment's reward, by name, or a sum such as "bleu + 0.5 * cider"."""
    shaped: bool = True
    """Pay every word what it adds, instead of the whole caption at its end; the sum is the same (ppo learns from half
    as many words)."""
    steps: int = 2_000_000
    """Words to be said in training, over all runners."""
    runners: int = 2
    """Processes that step environments beside the one that learns; 0 steps them there."""
    num_envs: int = 64
    """Captions in the making at a time, in every runner."""
    n_steps: int = 16
    """Steps of every environment before they are sent to the learner."""
    attention_dim: int = 64
    """A of the attention that is learned."""
    learning_rate: float | None = None
    """Step of the optimiser at the start; it falls to zero along a line."""
    batch_size: int | None = None
    """Steps a minibatch, of all learners together (ppo)."""
    n_epochs: int | None = None
    """Passes over what was sampled (ppo)."""
    gae_lambda: float | None = None
    """λ of generalised advantage estimation (ppo; Schulman et al. 2016)."""
    ent_coef: float = 0.002
    """Weight of the policy's entropy."""
    learners: int = 0
    """Processes that learn, each with its share of a batch; 0 learns in the main one."""
    gpus: float = 0.0
    """GPUs of each learner, also a part of one; with --learners, of which the main process is none."""
    runner_gpus: float = 0.0
    """GPUs of each runner, also a part of one; its decoder and its attention then run there."""
    address: str | None = None
    """A cluster that is running, such as auto or ray://HOST:10001; by default one is started here, and stopped."""
    validate_every: int = 100_000
    """Steps between two scores on val; the best weights are kept."""
    run_dir: Path | None = None
    """Where the run is kept; default runs/<dataset>-rllib-<algo>."""
    resume: bool = False
    """Go on with the run that lies in the run directory; its number of runners may differ."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints."""


RECIPES: dict[str, dict[str, Any]] = {
    "ppo": {"learning_rate": 3e-3, "batch_size": 256, "n_epochs": 4, "gae_lambda": 0.8},
    "impala": {"learning_rate": 1e-3},
}
TUNABLE = tuple(RECIPES["ppo"])
COUNTS = ("steps", "num_envs", "n_steps", "attention_dim", "batch_size", "n_epochs", "validate_every")


def resolve_defaults(options: Options) -> Options:
    """Fill in the options that are None, by the algorithm.

    Raises:
        ValueError: an option has no such value, or options do not fit together.
    """
    if options.algo not in RECIPES:
        raise ValueError(f"unknown algorithm {options.algo!r}; expected one of {', '.join(RECIPES)}")
    recipe = RECIPES[options.algo]
    for name in TUNABLE:
        if name not in recipe and getattr(options, name) is not None:
            raise ValueError(f"{options.algo} has no {name}; it takes {', '.join(recipe)}")
    run_dir = options.run_dir or Path("runs") / f"{world_of(options.env).name}-rllib-{options.algo}"
    defaults = {name: value for name, value in recipe.items() if getattr(options, name) is None}
    options = replace(options, run_dir=run_dir, **defaults)
    for name in COUNTS:
        if getattr(options, name) is not None:
            check_count(name, getattr(options, name), 1)
    sampled = options.n_steps * options.num_envs * max(1, options.runners)
    if min(options.batch_size or sampled, sampled) < options.learners:
        raise ValueError(f"{options.learners} learners cannot share a minibatch of fewer steps; pass fewer --learners")
    for name in ("runners", "learners"):
        check_count(name, getattr(options, name), 0)
    for name in ("gpus", "runner_gpus", "ent_coef", "checkpoint_minutes"):
        check_number(name, getattr(options, name), "at least 0", lambda value: value >= 0)
    check_number("learning_rate", options.learning_rate, "above 0", lambda value: value > 0)
    if options.gae_lambda is not None:
        check_number("gae_lambda", options.gae_lambda, "between 0 and 1", lambda value: 0 <= value <= 1)
    if options.gpus and not options.learners:
        raise ValueError("--gpus are of the learners, and the main process is none; pass --learners 1")
    return options


def env_config(options: Options) -> dict[str, Any]:
    """Keyword arguments of the environment, from which the module is built, too."""
    captioner = options.captioner
    if captioner is not None and Path(captioner).is_file() and captioner not in shipped_captioners():
        captioner = str(Path(captioner).resolve())  # other machines have other working folders
    return {
        "split": "train",
        "observe": "index",
        "captioner": captioner,
        "reward": options.reward,
        "shaped": options.shaped,
        "data_root": None if options.data_root is None else str(options.data_root.resolve()),
        "device": "cuda" if options.runner_gpus else "cpu",
    }
