"""Seeds and hyperparameters tried side by side with Ray Tune, the poor ones stopped early (ASHA; Li et al. 2020).

Knows the training commands by name, and what they log. A trial is a run directory like any other: one that was
interrupted goes on from its own checkpoint, and the trials that are done are scored in one table.
"""

from __future__ import annotations

import csv
import glob
import itertools
import os
import shlex
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from train.benchmark import command as benchmark
from train.common.cli import INTERRUPTED, run_command
from train.common.formatting import jsonable, write_json
from train.common.options import Compute, check_writable
from train.common.ray_cluster import cluster
from train.common.run_directory import RunDirectory, claim, read_config
from train.reinforce import trainer as reinforce
from train.sb3 import trainer as sb3

COMMANDS: dict[str, Any] = {"reinforce": reinforce, "sb3": sb3}
OWN = {"run_dir": "--run-dir", "resume": "--resume", "seed": "--seeds", "env": "--options"}  # how a sweep is told those
ALL = ("run_dir", "resume", "seed", "threads", "device", "data_root")  # what the sweep itself tells its trials
MAY_CHANGE = ("resume", "run_dir", "concurrent", "address", "threads", "limit", "gpus")  # when a sweep is resumed
METRIC, TIME = "val/bleu4", "charts/steps"
KEPT = "sweep.json"  # the options, in the run directory of the sweep
DONE = "trial.json"  # is in the run directory of a trial that has come to its end


@dataclass
class Options(Compute):
    """Try seeds and hyperparameters."""

    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Score only the first N images of val in the table; --options say what the trials are scored on."""
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
    """Draws (--draw); each is tried at every point of the grid and with every seed."""
    seeds: int = 1
    """Trainings of every point, with seeds from --seed on."""
    grace: int = 100_000
    """Words that every trial may say before it can be stopped for being poor; 0 lets all run to their end."""
    concurrent: int = 2
    """Trials at a time."""
    gpus: float = 0.0
    """GPUs of each trial, also a part of one; with --device cuda."""
    address: str | None = None
    """A Ray cluster that is running, with this folder at the same place; by default one is started here."""
    run_dir: Path = Path("runs/sweep")
    """Folder for the trials' run directories, Tune's records and the table."""
    resume: bool = False
    """Go on with the sweep that lies in the run directory: what is done stays, what was under way goes on."""


def grid(options: Options) -> dict[str, list[str]]:
    """What is tried of the options that were given values.

    Raises:
        ValueError: an option is not written as NAME=VALUE,VALUE, is named twice, or is not one to choose.
    """
    values: dict[str, list[str]] = {}
    for told in options.grid:
        name, _, written = told.partition("=")
        tried = written.split(",")
        _check_name(name, told, "NAME=VALUE,VALUE", all(tried), values)
        if len({*tried}) < len(tried):
            raise ValueError(f"{told!r} names a value twice; --seeds trains it again")
        values[name] = tried
    return values


def ranges(options: Options) -> dict[str, tuple[float, float]]:
    """What is drawn, and between what.

    Raises:
        ValueError: an option is not written as NAME=LOW..HIGH with 0 < LOW < HIGH, is named twice, or is not one to
            choose.
    """
    found: dict[str, tuple[float, float]] = {}
    for told in options.draw:
        name, _, written = told.partition("=")
        low, _, high = written.partition("..")
        try:
            limits = float(low), float(high)
        except ValueError:
            limits = 0.0, 0.0
        form = "NAME=LOW..HIGH, with 0 < LOW < HIGH"
        _check_name(name, told, form, 0 < limits[0] < limits[1] < float("inf"), {**found, **grid(options)})
        found[name] = limits
    return found


def points(options: Options) -> list[dict[str, str]]:
    """All that is tried, as options of the command: every draw at every point of the grid.

    Raises:
        ValueError: as ``grid`` and ``ranges``.
    """
    drawn, values = ranges(options), grid(options)
    rng = np.random.default_rng(options.seed)
    draws = [
        {name: f"{np.exp(rng.uniform(*np.log(limits))):.4g}" for name, limits in drawn.items()}
        for _ in range(options.samples if drawn else 1)
    ]
    combined = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return [{**point, **draw} for draw in draws for point in combined]


def _check_name(name: str, told: str, form: str, good: bool, named: Collection[str]) -> None:
    if not good or not name:
        raise ValueError(f"{told!r} cannot be tried; write it as {form}, such as learning-rate=...")
    if name.replace("-", "_") in OWN:
        raise ValueError(f"{name} is not for --grid or --draw: all trials have it from {OWN[name.replace('-', '_')]}")
    if name in named:
        raise ValueError(f"{name} is named twice; give all its values at once")


def trial_name(chosen: dict[str, str]) -> str:
    """The name of a trial's run directory: what was chosen, and the seed."""
    return ",".join(f"{name}={value}" for name, value in chosen.items())


def trial_runs(options: Options) -> list[Path]:
    """The run directories of all trials."""
    seeds = range(options.seed, options.seed + options.seeds)
    named = [trial_name({**point, "seed": str(seed)}) for point in points(options) for seed in seeds]
    return [options.run_dir.resolve() / name for name in named]


def command_line(base: str, chosen: dict[str, str], run: Path, resume: bool) -> list[str]:
    """A trial as the command line of its command."""
    told = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    return [*shlex.split(base), *told, "--run-dir", str(run), *(["--resume"] if resume else [])]


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


def trial(config: dict[str, Any], command: str, base: str, folder: str, here: str) -> None:
    """Train once, in a process of Tune's, and tell it every score; one that was interrupted goes on.

    A score is told when the next is there: a trial that is stopped for it has kept its checkpoint, and one that comes
    to its end is not stopped at its last. What was told before the sweep was interrupted is told again.
    """
    os.chdir(here)  # what --options name is looked for where the sweep was started
    chosen = {**config["point"], "seed": config["seed"]}
    run = Path(folder) / trial_name(chosen)
    held: list[dict[str, Any]] = []

    def tell(step: int, metrics: dict[str, float]) -> None:
        if METRIC not in metrics:
            return
        score = {METRIC: metrics[METRIC], TIME: metrics[TIME], "run": str(run)}
        for before in held:
            if before[TIME] < score[TIME]:  # else it is scored once more, after its checkpoint was lost
                tune.report(before)
        held[:] = [score]

    resumed = (run / "checkpoint.pt").is_file()
    for row in scores(run) if resumed else []:
        tell(0, row)
    if not (run / DONE).is_file():
        RunDirectory.listeners.append(tell)
        try:
            COMMANDS[command].main(parse(command, command_line(base, chosen, run, resumed)))
        finally:
            RunDirectory.listeners.remove(tell)
        write_json(run / DONE, {"best": max(row[METRIC] for row in scores(run))})
    tune.report(held[0])


def scores(run: Path) -> list[dict[str, float]]:
    """What a run was scored, in its order."""
    if not (run / "metrics.csv").is_file():
        return []
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(METRIC)]
    return [{name: float(row[name]) for name in (METRIC, TIME)} for row in rows]


def all_options(options: Options) -> str:
    """What every trial is told, as one line."""
    told = [options.options, f"--device {options.device} --threads {options.threads or 1}"]
    if options.data_root is not None:
        told.append(f"--data-root {shlex.quote(str(options.data_root.resolve()))}")
    return " ".join(told)


def check(options: Options) -> Any:
    """Refuse, before anything runs, what cannot be tried; returns the options of one trial.

    Raises:
        FileNotFoundError: ``resume`` was asked for and no sweep lies in the run directory.
        ValueError: an option of the sweep, or of one of its trials, has no such value.
    """
    if options.resume and not (options.run_dir / KEPT).is_file():
        raise FileNotFoundError(f"nothing to resume in {str(options.run_dir)!r}; start without --resume")
    if options.samples < 1 or options.seeds < 1 or options.concurrent < 1 or options.grace < 0 or options.gpus < 0:
        raise ValueError("samples, seeds and concurrent must be at least 1, grace and gpus at least 0")
    if (options.gpus > 0) != options.device.startswith("cuda"):
        raise ValueError(
            f"each trial is given {options.gpus:g} GPUs and computes on {options.device!r}; pass --device cuda with "
            "--gpus, which may be a part of one, or neither"
        )
    for word in shlex.split(options.options):
        if word.startswith("--") and word[2:].partition("=")[0].replace("-", "_") in ALL:
            raise ValueError(
                f"{word} is not for --options: all trials have it from the sweep; pass it beside --options"
            )
    asked = None
    for point in points(options):
        line = command_line(all_options(options), {**point, "seed": str(options.seed)}, Path("trial"), False)
        asked = parse(options.command, line)
    return asked


def tuner(options: Options) -> tune.Tuner:
    """The sweep as Tune sees it: a new one, whose trials go on from what lies in the run directory.

    Tune's own records are never read again: they are pickles, which run code of whoever wrote them.

    Raises:
        FileExistsError: a sweep, or something else of that name, lies there and ``resume`` was not asked for.
        ValueError: the one that lies there was started with other options.
    """
    records, kept = (options.run_dir / "tune").resolve(), options.run_dir / KEPT
    fixed = {"command": options.command, "base": all_options(options), "folder": str(options.run_dir.resolve())}
    fixed["here"] = str(Path.cwd())
    trainable = tune.with_resources(tune.with_parameters(trial, **fixed), {"cpu": 1, "gpu": options.gpus})
    seeds = range(options.seed, options.seed + options.seeds)
    space = {"point": tune.grid_search(points(options)), "seed": tune.grid_search([*map(str, seeds)])}
    config = {name: value for name, value in jsonable(options).items() if name not in MAY_CHANGE}
    if options.resume:
        before = read_config(kept)
        changed = sorted(name for name in config if before.get(name) != config[name])
        if changed:
            name = changed[0]
            raise ValueError(
                f"the sweep in {str(options.run_dir)!r} was started with {name}={before.get(name)!r}, not "
                f"{config[name]!r}; resume with the same options, or choose another --run-dir"
            )
    elif kept.exists():
        raise FileExistsError(
            f"{str(options.run_dir)!r} holds a sweep already; go on with --resume, or choose another --run-dir"
        )
    if kept.exists():
        shutil.rmtree(records, ignore_errors=True)
    elif records.exists():
        raise FileExistsError(f"{str(records)!r} is there, and not a sweep's; choose another --run-dir")
    write_json(kept, config)
    asha = ASHAScheduler(time_attr=TIME, max_t=10**12, grace_period=options.grace) if options.grace else None
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=asha,
            max_concurrent_trials=options.concurrent,
            trial_dirname_creator=lambda one: one.trial_id,
        ),
        run_config=tune.RunConfig(name=records.name, storage_path=str(records.parent), verbose=1),
    )


def table(options: Options, runs: list[str], env: str) -> None:
    """Score runs on val: those that differ in nothing but the seed are one agent."""
    agents: dict[str, list[str]] = {}
    for run in runs:
        agents.setdefault(run.rpartition("seed=")[0], []).append(run)
    whole = [f"{glob.escape(point)}seed=*" for point, each in agents.items() if len(each) == options.seeds]
    alone = [run for each in agents.values() if len(each) < options.seeds for run in each]
    scored = benchmark.Options(
        env=env,
        split="val",
        agents=sorted(whole + alone),
        live=0,
        run_dir=options.run_dir / "benchmark",
        limit=options.limit,
        device=options.device,
        data_root=options.data_root,
    )
    benchmark.main(scored)


def main(options: Options) -> int:
    """Try everything, then score what has come to its end; 1 if a trial failed, 130 if Ctrl-C was pressed before."""
    asked = check(options)
    check_writable(options.run_dir, "--run-dir", folder=True)
    with claim(options.run_dir):
        return _sweep(options, asked.env)


def _sweep(options: Options, env: str) -> int:
    with cluster(options.address, options.concurrent, options.concurrent * options.gpus):
        results = tuner(options).fit()  # Tune ends in peace after Ctrl-C
    ended = [one.metrics["run"] for one in results if one.error is None and one.metrics and one.metrics.get("done")]
    done = [run for run in trial_runs(options) if (run / DONE).is_file()]
    stopped, failed = len({*ended} - {*map(str, done)}), results.num_errors
    left = len(trial_runs(options)) - len(done) - stopped - failed
    print(f"{len(done)} trials done, {stopped} stopped early, {failed} failed: {options.run_dir}")
    if left:
        print(f"interrupted with {left} trials to go; go on with --resume", file=sys.stderr)
        return INTERRUPTED
    if done:
        table(options, [os.path.relpath(run) for run in done], env)
    return int(failed > 0)


if __name__ == "__main__":
    run_command(main, Options)
