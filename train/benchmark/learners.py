"""Training of the learned agents: in full once for each seed, or PPO for a minute or two."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from glimpse_env.datasets import find_world, world_of
from train.common.options import CommonOptions
from train.reinforce import trainer as reinforce
from train.sb3 import trainer as sb3

LIVE_SCORES = 12  # points of its learning curve
LIVE_IMAGES = 250  # of val, for each point


class Learner(NamedTuple):
    """The training of a learned agent."""

    folder: str  # name of its run directories, between the dataset and the seed
    options: reinforce.Options | sb3.Options  # without environment, seed and run directory


# By the agent's name. The shipped ones are those of `make weights`.
LEARNERS = {
    "reinforce": Learner("reinforce-soft", reinforce.Options(start="soft")),
    "reinforce-scratch": Learner("reinforce", reinforce.Options()),
    **{algo: Learner(algo, sb3.Options(algo=algo)) for algo in ("ppo", "maskable-ppo", "a2c", "dqn")},
}
# Additions and differences of families of worlds.
FAMILY_LEARNERS = {
    "photographs": {
        "reinforce": Learner("reinforce", reinforce.Options(start="soft")),
        "self-critical": Learner("self-critical", reinforce.Options(start="hard", train_decoder=True)),
    }
}


def find_learner(name: str, dataset: str) -> Learner | None:
    """The training of the agent ``name`` on a dataset; None of an agent that is not learned from reward."""
    world = find_world(dataset)
    learner = (LEARNERS | FAMILY_LEARNERS.get(world.recipe, {})).get(name)
    changes = world.learner_options.get(name, {})
    return None if learner is None else learner._replace(options=replace(learner.options, **changes))


def retrain(name: str, env: str, seeds: range, folder: Path, common: CommonOptions, length: float = 1.0) -> list[str]:
    """Train a learned agent once for each seed, and resume runs that were stopped.

    Args:
        name: of the agent.
        env: id of the environment.
        seeds: of the trainings.
        folder: of the run directories.
        common: device, threads and data; its ``seed`` and ``limit`` are not for trainings.
        length: share of the usual length.

    Returns:
        The run directories.

    Raises:
        ValueError: the agent is not learned from reward, or a run of that name was started with other options.
    """
    learner = find_learner(name, world_of(env).name)
    if learner is None:
        raise ValueError(f"{name!r} is not learned from reward; --retrain trains {', '.join(LEARNERS)}")
    runs = {seed: folder / f"{world_of(env).name}-{learner.folder}-{seed}" for seed in seeds}
    for seed, run_dir in runs.items():
        options = replace(learner.options, env=env, seed=seed, run_dir=run_dir, **_machine(common))
        command: Any = sb3 if isinstance(options, sb3.Options) else reinforce
        resolved, unit = command.resolve_defaults(options), "steps" if command is sb3 else "updates"
        resolved = replace(resolved, **{unit: max(1, round(length * getattr(resolved, unit)))})
        _train(command.resolve_defaults(resolved), f"{name}, seed {seed}")
    return [str(run_dir) for run_dir in runs.values()]


def _machine(common: CommonOptions) -> dict[str, Any]:
    return {"device": common.device, "threads": common.threads, "data_root": common.data_root}


def _train(options: reinforce.Options | sb3.Options, title: str) -> None:
    resume = options.run_dir is not None and (options.run_dir / "checkpoint.pt").is_file()
    print(f"\n{title}: {'going on with' if resume else 'training in'} {options.run_dir}")
    command: Callable[[Any], None] = sb3.main if isinstance(options, sb3.Options) else reinforce.main
    command(replace(options, resume=resume))


def train_live(env: str, run_dir: Path, common: CommonOptions, steps: int) -> str:
    """Train PPO from scratch for ``steps`` words, with many points of its learning curve; replaces an earlier run.

    ``common`` has seed, device, threads, data, and a limit of the images that each point scores. Returns ``run_dir``.
    """
    if (run_dir / "checkpoint.pt").is_file():
        shutil.rmtree(run_dir)
    options = sb3.Options(
        env=env,
        algo="ppo",
        steps=steps,
        validate_every=max(1, steps // LIVE_SCORES),
        run_dir=run_dir,
        seed=common.seed,
        limit=LIVE_IMAGES if common.limit is None else min(common.limit, LIVE_IMAGES),
        **_machine(common),
    )
    _train(sb3.resolve_defaults(options), f"PPO from nothing, {options.steps:,} steps")
    return str(run_dir)
