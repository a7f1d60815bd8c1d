"""Learned agents, trained here: once for each seed in full, or for a minute or two to see it happen.

Knows which command trains which agent. It does not know how agents are scored.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from train.common.options import Compute
from train.reinforce import trainer as reinforce
from train.reinforce.options import Options as ReinforceOptions
from train.reinforce.options import settle as settle_reinforce
from train.sb3 import trainer as sb3
from train.sb3.options import Options as Sb3Options
from train.sb3.options import settle as settle_sb3

LIVE_STEPS = 250_000  # a minute or two
LIVE_SCORES = 12  # points of its learning curve
LIVE_IMAGES = 250  # of val, that each point is a score of


class Learner(NamedTuple):
    """How a learned agent is trained.

    Attributes:
        folder: of its runs, with the dataset before it and the seed behind it.
        options: of the command, but for environment, seed and run directory.
    """

    folder: str
    options: ReinforceOptions | Sb3Options


# By the agent's name. The shipped ones are those of `make weights`.
LEARNERS = {
    "reinforce": Learner(
        "reinforce-soft",
        ReinforceOptions(start="soft", images=16, updates=2000, learning_rate=2e-3, entropy_bonus=0.01),
    ),
    "reinforce-scratch": Learner("reinforce", ReinforceOptions()),
    "ppo": Learner("ppo", Sb3Options(algo="ppo")),
    "maskable-ppo": Learner("maskable-ppo", Sb3Options(algo="maskable-ppo")),
    "a2c": Learner("a2c", Sb3Options(algo="a2c")),
    "dqn": Learner("dqn", Sb3Options(algo="dqn")),
}
# What is added, or differs, on other datasets.
LARGE = {"reinforce": Learner("reinforce-soft", ReinforceOptions(start="soft", updates=4000))}
PHOTOGRAPHS = {
    "reinforce": Learner("reinforce", ReinforceOptions(start="soft")),
    "self-critical": Learner("self-critical", ReinforceOptions(start="hard", train_decoder=True)),
}


def learner(name: str, dataset: str) -> Learner | None:
    """How the agent ``name`` is trained on a dataset; None of an agent that is not learned from reward."""
    other = {"shapes": {}, "shapes-large": LARGE}.get(dataset, PHOTOGRAPHS)
    return (LEARNERS | other).get(name)


def retrain(
    name: str, env: str, dataset: str, seeds: range, folder: Path, compute: Compute, share: float = 1.0
) -> list[str]:
    """Train a learned agent once for each seed, and go on with runs that were stopped.

    Args:
        name: of the agent.
        env: id of the environment.
        dataset: its short name.
        seeds: of the trainings.
        folder: where the run directories lie.
        compute: what to compute with; its ``seed`` and ``limit`` are not for trainings.
        share: of its usual length.

    Returns:
        The run directories.

    Raises:
        ValueError: it is not learned from reward, or a run of that name was started with other options.
    """
    found = learner(name, dataset)
    if found is None:
        raise ValueError(f"{name!r} is not learned from reward; --retrain trains {', '.join(LEARNERS)}")
    runs = []
    for seed in seeds:
        run_dir = folder / f"{dataset}-{found.folder}-{seed}"
        _train(_settled(found.options, env, seed, run_dir, compute, share), f"{name}, seed {seed}")
        runs.append(str(run_dir))
    return runs


def _settled(
    options: ReinforceOptions | Sb3Options, env: str, seed: int, run_dir: Path, compute: Compute, share: float
) -> ReinforceOptions | Sb3Options:
    """The options of one training, with its length as a number."""
    shared = {name: getattr(compute, name) for name in ("device", "threads", "data_root")}
    named: dict[str, Any] = {"env": env, "seed": seed, "run_dir": run_dir, **shared}
    if isinstance(options, Sb3Options):
        settled = settle_sb3(replace(options, **named))
        return settle_sb3(replace(settled, steps=max(1, round(share * (settled.steps or 1)))))
    chosen = settle_reinforce(replace(options, **named))
    return replace(chosen, updates=max(1, round(share * (chosen.updates or 1))))


def _train(options: ReinforceOptions | Sb3Options, title: str) -> None:
    there = options.run_dir is not None and (options.run_dir / "checkpoint.pt").is_file()
    print(f"\n{title}: {'going on with' if there else 'training in'} {options.run_dir}")
    command: Callable[[Any], None] = sb3.main if isinstance(options, Sb3Options) else reinforce.main
    command(replace(options, resume=there))


def live(env: str, run_dir: Path, compute: Compute, steps: int) -> str:
    """A short PPO run from nothing, with a dense learning curve; an earlier one in its place is replaced.

    Args:
        env: id of the environment.
        run_dir: where the run is kept.
        compute: what to compute with.
        steps: words to be said in training.

    Returns:
        The run directory.
    """
    if (run_dir / "checkpoint.pt").is_file():
        shutil.rmtree(run_dir)
    limit = min(LIVE_IMAGES if compute.limit is None else compute.limit, LIVE_IMAGES)
    options = Sb3Options(
        env=env,
        algo="ppo",
        steps=steps,
        validate_every=max(1, steps // LIVE_SCORES),
        run_dir=run_dir,
        seed=compute.seed,
        limit=limit,
        device=compute.device,
        threads=compute.threads,
        data_root=compute.data_root,
    )
    _train(settle_sb3(options), f"PPO from nothing, {options.steps:,} steps")
    return str(run_dir)
