"""A sweep over seeds and hyperparameters with Ray Tune, which stops poor trials early (ASHA; Li et al. 2020).

A trial is a run directory like any other: it resumes from its own checkpoint. Finished trials are scored in one table.
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
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import tyro
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from train.benchmark import runner as benchmark
from train.common.cli import INTERRUPTED, run_command
from train.common.formatting import write_json
from train.common.options import CommonOptions, check_writable
from train.common.ray_cluster import cluster
from train.common.run_directory import RunDirectory, fixed_config, lock_folder
from train.reinforce import trainer as reinforce
from train.sb3 import trainer as sb3

COMMANDS: dict[str, Any] = {"reinforce": reinforce, "sb3": sb3}
SWEEP_FLAGS = {"run_dir": "--run-dir", "resume": "--resume", "seed": "--seeds", "env": "--options"}  # of these options
SHARED_OPTIONS = ("run_dir", "resume", "seed", "threads", "device", "data_root")  # which the sweep passes to its trials
METRIC, STEPS = "val/bleu4", "charts/steps"
CONFIG_FILE = "sweep.json"  # the options, in the run directory of the sweep
DONE_FILE = "trial.json"  # in the run directory of a finished trial


@dataclass
class Options(CommonOptions):
    """Try seeds and hyperparameters."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = tuple("resume run_dir concurrent address threads limit gpus".split())
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


def _grid_values(options: Options) -> dict[str, list[str]]:
    grid: dict[str, list[str]] = {}
    for argument in options.grid:
        name, _, text = argument.partition("=")
        values = text.split(",")
        _check_name(name, argument, "NAME=VALUE,VALUE", all(values), grid)
        if len({*values}) < len(values):
            raise ValueError(f"{argument!r} names a value twice; --seeds trains it again")
        grid[name] = values
    return grid


def _draw_ranges(options: Options, grid: Collection[str]) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}
    for argument in options.draw:
        name, _, text = argument.partition("=")
        low, _, high = text.partition("..")
        try:
            limits = float(low), float(high)
        except ValueError:
            limits = 0.0, 0.0
        form = "NAME=LOW..HIGH, with 0 < LOW < HIGH"
        _check_name(name, argument, form, 0 < limits[0] < limits[1] < float("inf"), {*ranges, *grid})
        ranges[name] = limits
    return ranges


def _check_name(name: str, argument: str, form: str, is_valid: bool, named: Collection[str]) -> None:
    if not is_valid or not name:
        raise ValueError(f"{argument!r} cannot be tried; write it as {form}, such as learning-rate=...")
    flag = SWEEP_FLAGS.get(name.replace("-", "_"))
    if flag is not None:
        raise ValueError(f"{name} is not for --grid or --draw: all trials have it from {flag}")
    if name in named:
        raise ValueError(f"{name} is named twice; give all its values at once")


def trial_options(options: Options) -> list[dict[str, str]]:
    """Every draw at every point of the grid, as options of the command.

    Raises:
        ValueError: an option of --grid or --draw is not written as NAME=VALUE,VALUE or NAME=LOW..HIGH with
            0 < LOW < HIGH, is named twice, or is not one to try.
    """
    grid = _grid_values(options)
    ranges = _draw_ranges(options, grid)
    rng = np.random.default_rng(options.seed)
    draws = [
        {name: f"{np.exp(rng.uniform(*np.log(limits))):.4g}" for name, limits in ranges.items()}
        for _ in range(options.samples if ranges else 1)
    ]
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [{**point, **draw} for draw in draws for point in combinations]


def trial_name(point: dict[str, str]) -> str:
    """The name of a trial's run directory: its options of the sweep, and the seed."""
    return ",".join(f"{name}={value}" for name, value in point.items())


def _seeds(options: Options) -> list[str]:
    return [str(options.seed + index) for index in range(options.seeds)]


def command_line(base: str, point: dict[str, str], run: Path, resume: bool) -> list[str]:
    """The arguments of a trial's command."""
    arguments = [argument for name, value in point.items() for argument in (f"--{name}", value)]
    return [*shlex.split(base), *arguments, "--run-dir", str(run), *(["--resume"] if resume else [])]


def parse(command: str, line: list[str]) -> Any:
    """The options of a command line, with the command's defaults resolved.

    Raises:
        ValueError: the command has no such option, or an option no such value.
    """
    module = COMMANDS[command]
    try:
        return module.resolve_defaults(tyro.cli(module.Options, args=line, console_outputs=False))
    except SystemExit as error:
        raise ValueError(f"train.{command} cannot be called with {' '.join(line)!r}; see its --help") from error


def _run_trial(config: dict[str, Any], command: str, base: str, folder: str, working_dir: str) -> None:
    """Train once, in a process of Tune's, or resume; report every score to Tune.

    A score is reported when the next one is there: then a trial that Tune stops has its checkpoint, and one that
    finishes is not stopped at its last score. A resumed trial reports its earlier scores again.
    """
    os.chdir(working_dir)  # relative paths in --options are those of the sweep
    point = {**config["point"], "seed": config["seed"]}
    run = Path(folder) / trial_name(point)
    pending: list[dict[str, Any]] = []

    def report_previous(step: int, metrics: dict[str, float]) -> None:
        if METRIC not in metrics:
            return
        score = {METRIC: metrics[METRIC], STEPS: metrics[STEPS], "run": str(run)}
        for previous in pending:
            if previous[STEPS] < score[STEPS]:  # else it is scored once more, after its checkpoint was lost
                tune.report(previous)
        pending[:] = [score]

    resume = (run / "checkpoint.pt").is_file()
    for row in _read_scores(run) if resume else []:
        report_previous(0, row)
    if not (run / DONE_FILE).is_file():
        RunDirectory.listeners.append(report_previous)
        try:
            COMMANDS[command].main(parse(command, command_line(base, point, run, resume)))
        finally:
            RunDirectory.listeners.remove(report_previous)
        write_json(run / DONE_FILE, {"best": max(row[METRIC] for row in _read_scores(run))})
    tune.report(pending[0])


def _read_scores(run: Path) -> list[dict[str, float]]:
    """Scores of a run in the order of its steps."""
    file = run / "metrics.csv"
    rows = csv.DictReader(file.read_text().splitlines() if file.is_file() else [])
    return [{name: float(row[name]) for name in (METRIC, STEPS)} for row in rows if row.get(METRIC)]


def shared_arguments(options: Options) -> str:
    """The arguments of every trial, as one line."""
    root = [] if options.data_root is None else ["--data-root", shlex.quote(str(options.data_root.resolve()))]
    return " ".join([options.options, f"--device {options.device} --threads {options.threads or 1}", *root])


def check_sweep(options: Options) -> Any:
    """Check the options of the sweep and of all its trials before anything runs; returns those of one trial.

    Raises:
        FileNotFoundError: ``resume`` is set and the run directory holds no sweep.
        ValueError: an option of the sweep, or of one of its trials, has no such value.
    """
    if options.resume and not (options.run_dir / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"nothing to resume in {str(options.run_dir)!r}; start without --resume")
    if options.samples < 1 or options.seeds < 1 or options.concurrent < 1 or options.grace < 0 or options.gpus < 0:
        raise ValueError("samples, seeds and concurrent must be at least 1, grace and gpus at least 0")
    if (options.gpus > 0) != options.device.startswith("cuda"):
        raise ValueError(
            f"each trial is given {options.gpus:g} GPUs and computes on {options.device!r}; pass --device cuda with "
            "--gpus, which may be a part of one, or neither"
        )
    for word in shlex.split(options.options):
        if word.startswith("--") and word[2:].partition("=")[0].replace("-", "_") in SHARED_OPTIONS:
            raise ValueError(f"{word} is not for --options: the sweep sets it for all trials; pass it beside --options")
    base, seed = shared_arguments(options), str(options.seed)
    lines = [command_line(base, {**point, "seed": seed}, Path("trial"), False) for point in trial_options(options)]
    return [parse(options.command, line) for line in lines][-1]


def make_tuner(options: Options) -> tune.Tuner:
    """A new Tune experiment, whose trials resume from the run directory.

    Tune's own records are never read again: they are pickles, which run code of whoever wrote them.

    Raises:
        FileExistsError: the run directory holds a sweep and ``resume`` is not set, or something else of that name.
        ValueError: the sweep in the run directory was started with other options.
    """
    records = (options.run_dir / "tune").resolve()
    _write_config(options, records)
    fixed = {"command": options.command, "base": shared_arguments(options), "folder": str(options.run_dir.resolve())}
    trainable = tune.with_parameters(_run_trial, **fixed, working_dir=str(Path.cwd()))
    asha = ASHAScheduler(time_attr=STEPS, max_t=10**12, grace_period=options.grace) if options.grace else None
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": options.gpus}),
        param_space={"point": tune.grid_search(trial_options(options)), "seed": tune.grid_search(_seeds(options))},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=asha,
            max_concurrent_trials=options.concurrent,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name=records.name, storage_path=str(records.parent), verbose=1),
    )


def _write_config(options: Options, records: Path) -> None:
    """Write the sweep's options, and remove Tune's records of an earlier start."""
    file = options.run_dir / CONFIG_FILE
    config = fixed_config(options, file if options.resume else None, "sweep")
    if file.exists() and not options.resume:
        raise FileExistsError(
            f"{str(options.run_dir)!r} holds a sweep already; go on with --resume, or choose another --run-dir"
        )
    if file.exists():
        shutil.rmtree(records, ignore_errors=True)
    elif records.exists():
        raise FileExistsError(f"{str(records)!r} is there, and not a sweep's; choose another --run-dir")
    write_json(file, config)


def _score_runs(options: Options, runs: list[str], env: str) -> None:
    """Score runs on val in one table, as one agent those that differ in nothing but the seed."""
    agents: dict[str, list[str]] = {}
    for run in runs:
        agents.setdefault(run.rpartition("seed=")[0], []).append(run)
    complete = [f"{glob.escape(point)}seed=*" for point, seeds in agents.items() if len(seeds) == options.seeds]
    single = [run for seeds in agents.values() if len(seeds) < options.seeds for run in seeds]
    folder, names = options.run_dir / "benchmark", sorted(complete + single)
    shared = {name: getattr(options, name) for name in ("limit", "device", "data_root")}
    benchmark.main(benchmark.Options(env=env, split="val", agents=names, live=0, run_dir=folder, **shared))


def main(options: Options) -> int:
    """Run all trials, then score the finished ones; returns 1 if a trial failed, 130 after Ctrl-C."""
    env = check_sweep(options).env
    check_writable(options.run_dir, "--run-dir", folder=True)
    with lock_folder(options.run_dir):
        return _sweep(options, env)


def _sweep(options: Options, env: str) -> int:
    with cluster(options.address, options.concurrent, options.concurrent * options.gpus):
        results = make_tuner(options).fit()  # Tune ends in peace after Ctrl-C
    finished = [result.metrics for result in results if result.error is None and result.metrics]
    ended = {metrics["run"] for metrics in finished if metrics.get("done")}
    trials = [{**point, "seed": seed} for point in trial_options(options) for seed in _seeds(options)]
    runs = [options.run_dir.resolve() / trial_name(trial) for trial in trials]
    done = [run for run in runs if (run / DONE_FILE).is_file()]
    stopped, failed = len(ended - {*map(str, done)}), results.num_errors
    remaining = len(runs) - len(done) - stopped - failed
    print(f"{len(done)} trials done, {stopped} stopped early, {failed} failed: {options.run_dir}")
    if remaining:
        print(f"interrupted with {remaining} trials to go; go on with --resume", file=sys.stderr)
        return INTERRUPTED
    if done:
        _score_runs(options, [os.path.relpath(run) for run in done], env)
    return int(failed > 0)


if __name__ == "__main__":
    run_command(main, Options)
