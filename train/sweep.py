"""Seeds and hyperparameters tried side by side with Ray Tune, the poor ones stopped early (ASHA; Li et al. 2020).

Knows the training commands by name, and what they log. A trial is a run directory like any other: one that was
interrupted goes on from its own checkpoint, and the trials that are done are scored in one table.
"""

from __future__ import annotations

import csv
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from train import benchmark, reinforce, sb3
from train.cluster import cluster
from train.command import run_command
from train.common import Compute, RunDirectory, check_writable

COMMANDS: dict[str, Any] = {"reinforce": reinforce, "sb3": sb3}
DEFAULTS = {"run_dir", "resume", "seed"}  # what a sweep sets itself
METRIC, TIME = "val/bleu4", "charts/steps"


@dataclass
class Options(Compute):
    """Try seeds and hyperparameters."""

    command: tyro.conf.Positional[Literal["reinforce", "sb3"]] = "sb3"
    """What is trained: train.reinforce or train.sb3."""
    options: str = ""
    """Options of every trial, as that command takes them; write them behind a =, as in
    --options="--algo ppo --steps 200000"."""
    grid: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list)
    """An option and its values, such as "learning-rate=1e-3,3e-3"; may be given again: all are combined."""
    draw: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list)
    """An option and the range it is drawn from, evenly in its logarithm, such as "learning-rate=1e-4..1e-2"."""
    samples: int = 1
    """Draws for every point of the grid (--draw)."""
    seeds: int = 1
    """Trainings of every point, with seeds from --seed on."""
    grace: int = 100_000
    """Words that every trial may say before it can be stopped for being poor; 0 lets all run to their end."""
    concurrent: int = 2
    """Trials at a time."""
    address: str | None = None
    """A Ray cluster that is running, with this folder at the same place; by default one is started here."""
    run_dir: Path = Path("runs/sweep")
    """Folder for the trials' run directories, Tune's records and the table."""
    resume: bool = False
    """Go on with the sweep that lies in the run directory: what is done stays, what was under way goes on."""


def points(options: Options) -> list[dict[str, Any]]:
    """The grid's points as options of the command.

    Raises:
        ValueError: an option is not written as NAME=VALUE,VALUE, or is not one to choose.
    """
    values = {}
    for told in options.grid:
        name, _, written = told.partition("=")
        values[_checked(name, told, "NAME=VALUE,VALUE", bool(written))] = written.split(",")
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def ranges(options: Options) -> dict[str, tuple[float, float]]:
    """What is drawn, and between what.

    Raises:
        ValueError: an option is not written as NAME=LOW..HIGH with 0 < LOW < HIGH, or is not one to choose.
    """
    found = {}
    for told in options.draw:
        name, _, written = told.partition("=")
        low, _, high = written.partition("..")
        try:
            limits = float(low), float(high)
        except ValueError:
            limits = 0.0, 0.0
        found[_checked(name, told, "NAME=LOW..HIGH, with 0 < LOW < HIGH", 0 < limits[0] < limits[1])] = limits
    return found


def _checked(name: str, told: str, form: str, good: bool) -> str:
    if not good or not name:
        raise ValueError(f"{told!r} cannot be tried; write it as {form}, such as learning-rate=...")
    if name.replace("-", "_") in DEFAULTS:
        raise ValueError(f"{name} is not for --grid or --draw: a sweep sets it itself (--seeds, --run-dir)")
    return name


def trial_name(config: dict[str, Any]) -> str:
    """The name of a trial's run directory: what was chosen, and the seed."""
    chosen = [
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in config.items()
    ]
    return ",".join(chosen)


def command_line(base: str, config: dict[str, Any], run: Path, resume: bool) -> list[str]:
    """A trial as the command line of its command."""
    chosen = [word for name, value in config.items() for word in (f"--{name}", str(value))]
    return [*base.split(), *chosen, "--run-dir", str(run), *(["--resume"] if resume else [])]


def parse(command: str, line: list[str]) -> Any:
    """A command line as the command's settled options.

    Raises:
        ValueError: it has no such option or value.
    """
    module = COMMANDS[command]
    try:
        return module.settle(tyro.cli(module.Options, args=line, console_outputs=False))
    except SystemExit as error:
        raise ValueError(f"train.{command} cannot be called with {' '.join(line)!r}; see its --help") from error


def trial(config: dict[str, Any], command: str, base: str, folder: str) -> None:
    """Train once, in a process of Tune's, and tell it every score; one that was interrupted goes on."""
    run = Path(folder) / trial_name(config)
    asked = parse(command, command_line(base, config, run, (run / "checkpoint.pt").is_file()))

    def tell(step: int, metrics: dict[str, float]) -> None:
        if METRIC in metrics:
            tune.report({METRIC: metrics[METRIC], TIME: metrics[TIME], "run": str(run)})

    RunDirectory.listeners.append(tell)
    try:
        COMMANDS[command].main(asked)
    finally:
        RunDirectory.listeners.remove(tell)
    with (run / "metrics.csv").open(newline="") as file:  # of a run that was done before, too
        rows = [row for row in csv.DictReader(file) if row.get(METRIC)]
    best = max(float(row[METRIC]) for row in rows)
    tune.report({METRIC: float(rows[-1][METRIC]), TIME: float(rows[-1][TIME]), "best": best, "run": str(run)})


def tuner(options: Options) -> tune.Tuner:
    """The sweep as Tune sees it: a new one, or the one that lies in the run directory."""
    records = (options.run_dir / "tune").resolve()
    fixed = {"command": options.command, "base": options.options, "folder": str(options.run_dir.resolve())}
    trainable = tune.with_resources(tune.with_parameters(trial, **fixed), {"cpu": 1})
    space: dict[str, Any] = {name: tune.loguniform(*limits) for name, limits in ranges(options).items()}
    named = points(options)
    for name in named[0]:
        space[name] = tune.grid_search(list(dict.fromkeys(point[name] for point in named)))
    space["seed"] = tune.grid_search(list(range(options.seed, options.seed + options.seeds)))
    if options.resume:
        if not tune.Tuner.can_restore(str(records)):
            raise FileNotFoundError(f"nothing to resume in {str(options.run_dir)!r}; start without --resume")
        return tune.Tuner.restore(str(records), trainable, resume_errored=True, param_space=space)
    if records.exists():
        raise FileExistsError(
            f"{str(options.run_dir)!r} holds a sweep already; go on with --resume, or choose another --run-dir"
        )
    asha = ASHAScheduler(time_attr=TIME, max_t=10**12, grace_period=options.grace) if options.grace else None
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=asha,
            num_samples=options.samples,
            max_concurrent_trials=options.concurrent,
            trial_dirname_creator=lambda one: one.trial_id,
        ),
        run_config=tune.RunConfig(name=records.name, storage_path=str(records.parent), verbose=1),
    )


def table(options: Options, runs: list[str], env: str) -> None:
    """Score the runs on val: those that differ in nothing but the seed are one agent."""
    agents = {run.rpartition("seed=")[0] + "seed=*" for run in runs}
    scored = benchmark.Options(
        env=env,
        split="val",
        agents=sorted(agents),
        live=0,
        run_dir=options.run_dir / "benchmark",
        limit=options.limit,
        device=options.device,
        data_root=options.data_root,
    )
    benchmark.main(scored)


def main(options: Options) -> int:
    """Try everything, then score what is done; 1 if a trial failed."""
    if options.samples < 1 or options.seeds < 1 or options.concurrent < 1 or options.grace < 0:
        raise ValueError("samples, seeds and concurrent must be at least 1, and grace at least 0")
    config = (
        {name: f"{low:g}" for name, (low, _) in ranges(options).items()} | points(options)[0] | {"seed": options.seed}
    )
    asked = parse(options.command, command_line(options.options, config, options.run_dir / "trial", False))
    check_writable(options.run_dir, "--run-dir", folder=True)
    with cluster(options.address, options.concurrent):
        results = tuner(options).fit()
    done = sorted({one.metrics["run"] for one in results if one.error is None and one.metrics and "run" in one.metrics})
    print(f"{len(done)} trials done, {results.num_errors} failed: {options.run_dir}")
    if done:
        table(options, [os.path.relpath(run) for run in done], asked.env)
    return int(results.num_errors > 0)


if __name__ == "__main__":
    run_command(main, Options)
