"""Long trials: killed and resumed trainings end in the same weights, and environments leak neither memory nor files."""

from __future__ import annotations

import csv
import importlib
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode
from tqdm import tqdm

from glimpse_env.datasets import world_of
from glimpse_env.envs.vector import GlimpseVectorEnv
from train.common.cli import run_command
from train.common.formatting import markdown_table
from train.throughput.memory import Memory

SHORT = "--limit 64 --threads 1 --checkpoint-minutes 0.0005"
CAPTIONER = f"--dataset shapes --epochs 2 --batch-images 4 --tile-steps 20 {SHORT}"
REINFORCE = f"--images 4 --rollouts 3 --updates 60 --validate-every 20 {SHORT}"
WORDS = REINFORCE.replace("60", "20").replace("every 20", "every 10")  # training the decoder takes longer
SB3 = f"--num-envs 8 --validate-every 512 {SHORT}"
ROLLOUTS = f"{SB3} --steps 2048 --n-steps 16"
TRAININGS = {
    "captioner": ("train.captioner", f"{CAPTIONER} --attention soft"),
    "semi": ("train.captioner", f"{CAPTIONER} --attention semi --from shapes --estimator reinforce"),
    "no-attention": ("train.captioner", f"{CAPTIONER} --attention none"),
    "reinforce": ("train.reinforce", REINFORCE),
    "value": ("train.reinforce", f"{REINFORCE} --baseline value --reward-to-go --feature-dropout 0.2"),
    "corpus-bleu": (
        "train.reinforce",
        f"{WORDS} --from hard --train-decoder --reward corpus-bleu --baseline moving-average --anchor 0.1",
    ),
    "self-critical": ("train.reinforce", f"{REINFORCE} --from hard --train-decoder --baseline self-critical"),
    "ppo": ("train.sb3", f"--algo ppo {ROLLOUTS}"),
    "a2c": ("train.sb3", f"--algo a2c {ROLLOUTS}"),
    "maskable-ppo": ("train.sb3", f"--algo maskable-ppo {ROLLOUTS}"),
    "recurrent-ppo": ("train.sb3", f"--algo recurrent-ppo {ROLLOUTS}"),
    "dqn": ("train.sb3", f"--algo dqn --steps 1024 --learning-starts 256 --batch-size 32 {SB3}"),
}
CLOCKS = ("seconds", "charts/seconds", "charts/tokens_per_second")  # differ from run to run
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


@dataclass
class Resume:
    """Kill training commands with SIGKILL at random moments; what they end with is that of runs left alone."""

    kills: int = 50
    """Kills of each command; more, until one of them leaves a checkpoint to go on from."""
    trainings: tuple[str, ...] = tuple(TRAININGS)
    """Which commands."""
    seed: int = 0
    """Of the moments."""
    folder: Path | None = None
    """Where the runs lie; by default a temporary folder."""


@dataclass
class Steps:
    """Step a vector environment in all three autoreset modes; memory, open files and rewards stay where they were."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    steps: int = 10_000_000
    """Steps of single episodes, in all."""
    num_envs: int = 256
    """Episodes at a time."""
    split: str = "val"
    """Which images."""
    seed: int = 0
    """Of images and actions."""
    threads: int = 0
    """CPU threads for torch; 0 leaves torch's choice."""
    may_grow: float = 0.02
    """Share by which the resident memory may grow after the first twentieth."""


@dataclass
class Options:
    """Run long trials."""

    trial: Annotated[
        Annotated[Resume, tyro.conf.subcommand("resume")] | Annotated[Steps, tyro.conf.subcommand("steps")],
        tyro.conf.arg(name=""),
    ] = field(default_factory=Resume)


def train(module: str, arguments: list[str], log: Path) -> None:
    """Run a training command in this process, with its output and traceback appended to a file."""
    command = importlib.import_module(module)
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    command.main(tyro.cli(command.Options, args=arguments))


class Killer:
    """Runs a command of ``TRAININGS`` in a folder, and kills it at moments drawn from ``rng``.

    Raises:
        ValueError, FileExistsError: there is no such training, or its folder exists already.
    """

    def __init__(self, name: str, folder: Path, rng: np.random.Generator) -> None:
        if name not in TRAININGS:
            raise ValueError(f"unknown training {name!r}; expected one of {', '.join(TRAININGS)}")
        self.module, arguments = TRAININGS[name]
        self.arguments, self.folder, self.rng = arguments.split(), folder / name, rng
        self.resumed = 0  # number of runs that were resumed from a checkpoint
        if self.folder.exists():
            raise FileExistsError(f"{str(self.folder)!r} is there already; name another folder, or delete it")
        self.folder.mkdir(parents=True)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([module for module, _ in TRAININGS.values()])

    def run(self, run: Path, seconds: float | None = None) -> bool:
        """Start or resume a run, and kill it after some seconds, if any; returns whether it ended before that.

        Raises:
            RuntimeError: the command failed by itself.
        """
        resume = ["--resume"] if (run / "checkpoint.pt").exists() else []
        self.resumed += len(resume)
        log = self.folder / f"{run.name}.txt"
        arguments = [*self.arguments, *resume, "--run-dir", str(run)]
        process = self.context.Process(target=train, args=(self.module, arguments, log))
        process.start()
        process.join(seconds)
        killed = process.is_alive()
        if killed:
            process.kill()
            process.join()
        if process.exitcode != 0 and not (killed and process.exitcode == -signal.SIGKILL):
            raise RuntimeError(f"{self.module} {' '.join(arguments)} failed by itself; {log} has its words")
        return process.exitcode == 0

    def trial(self, kills: int) -> Iterator[str | None]:
        """Kill so often, and until a run was resumed.

        Yields None after each kill, and after each run what differs from an undisturbed one: "" for nothing.
        """
        undisturbed = self.folder / "whole"
        start = time.monotonic()
        self.run(undisturbed)
        duration, count, number = time.monotonic() - start, 0, 0
        while count < kills or not self.resumed:
            run = self.folder / f"killed-{number}"
            while not self.run(run, None if count >= kills and self.resumed else float(self.rng.uniform(0, duration))):
                count += 1
                yield None
            difference = compare(undisturbed, run)
            yield difference or ""
            if difference is None:  # else the run stays for inspection
                shutil.rmtree(run)
            number += 1


def compare(run: Path, other: Path) -> str | None:
    """The first difference between two run directories, clocks aside; None if there is none."""
    runs = (run, other)
    states = [torch.load(path / "checkpoint.pt", map_location="cpu", weights_only=True) for path in runs]
    if difference := _difference(*states):
        return f"checkpoint.pt: {difference}"
    metrics = [csv.DictReader((path / "metrics.csv").read_text().splitlines()) for path in runs]
    tables = [[{**row, **dict.fromkeys(CLOCKS)} for row in rows] for rows in metrics]
    if tables[0] != tables[1]:
        return "metrics.csv"
    names, other_names = (sorted(file.name for file in path.glob("*.safetensors")) for path in runs)
    if names != other_names:
        return f"files {[names, other_names]}"
    return next((name for name in names if (run / name).read_bytes() != (other / name).read_bytes()), None)


def _difference(state: Any, other: Any, name: str = "") -> str | None:
    """The name of the first item in which two states of tensors, numbers, lists and dicts differ."""
    if isinstance(state, torch.Tensor):
        equal = state.shape == other.shape and bool(((state == other) | (state.isnan() & other.isnan())).all())
        return None if equal else name
    if isinstance(state, (dict, list, tuple)):
        if len(state) != len(other):
            return name
        keys = state if isinstance(state, dict) else range(len(state))
        items = (_difference(state[key], other[key], f"{name}[{key!r}]") for key in keys if key not in CLOCKS)
        return next((item for item in items if item is not None), None)
    return None if state == other or (state != state and other != other) else name


def resume(options: Resume) -> int:
    """Run the trial of killed trainings; returns the number of commands that failed it.

    Raises:
        ValueError: fewer than one kill.
    """
    if options.kills < 1:
        raise ValueError(f"kills must be at least 1, got {options.kills}")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="glimpse-soak-"))
    rows, failed = [], 0
    for number, name in enumerate(options.trainings):
        killer = Killer(name, folder, np.random.default_rng([options.seed, number]))
        events = []
        with tqdm(total=options.kills, desc=name, unit="kill") as bar:
            for event in killer.trial(options.kills):
                events.append(event)
                bar.update(event is None)
        kills, differences = events.count(None), sorted({event for event in events if event})
        failed += bool(differences)
        counts = map(str, (kills, killer.resumed, len(events) - kills))
        rows.append([name, *counts, ", ".join(differences) or "none"])
    print(markdown_table(["training", "kills", "resumed", "runs", "differences"], rows))
    if failed:
        print(f"the runs that differ, and the ones left alone, are in {folder}")
    elif options.folder is None:
        shutil.rmtree(folder)
    return failed


class LongRunTrend(NamedTuple):
    """Changes over a long trial."""

    growth: float  # of the resident memory, as a fraction
    opened: int  # open files at the end, less those at the start
    drift: float  # of the mean reward from the first half to the second
    error: float  # standard error of ``drift``

    @classmethod
    def from_periods(cls, memory: list[float], files: list[int], rewards: list[tuple[float, float]]) -> LongRunTrend:
        """The trend of a trial of P periods: resident memory, open files, and mean reward with its standard error."""
        halves = [np.array(half) for half in (rewards[: len(rewards) // 2], rewards[len(rewards) // 2 :])]
        drift = float(halves[1][:, 0].mean() - halves[0][:, 0].mean())
        error = float(np.sqrt(sum((half[:, 1] ** 2).sum() / len(half) ** 2 for half in halves)))
        return cls(memory[-1] / memory[0] - 1, files[-1] - files[0], drift, error)

    def steady(self, may_grow: float) -> bool:
        """Whether memory and open files did not grow and rewards did not drift; NaN is not steady."""
        return self.growth <= may_grow and self.opened <= 0 and abs(self.drift) <= 4 * self.error


def steps(options: Steps) -> int:
    """Run the trial of steps; returns 1 if something grew or drifted, else 0.

    Raises:
        ValueError: there is no such environment, or the steps are too few.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    task = {"split": options.split, "observe": "index"}
    world = world_of(options.env).name
    all_envs = [GlimpseVectorEnv(options.num_envs, world, autoreset_mode=mode, **task) for mode in MODES]
    for number, envs in enumerate(all_envs):
        envs.action_space.seed(options.seed + number)
        envs.reset(seed=options.seed + number * options.num_envs)
    rng = np.random.default_rng(options.seed)
    total = -(-options.steps // options.num_envs)
    rewards, memory, files = [], [], []
    with tqdm(total=total * options.num_envs, desc=options.env, unit="step", unit_scale=True) as bar:
        for period in np.array_split(np.arange(total), 20):
            period_rewards: list[float] = []
            for step in period.tolist():
                envs = all_envs[step // 50 % len(MODES)]  # 50 steps of each mode in turn
                period_rewards += _step(envs, rng)
                bar.update(options.num_envs)
            if not period_rewards:
                raise ValueError(f"a twentieth of {options.steps} steps ends no caption; take more --steps")
            rewards.append((float(np.mean(period_rewards)), float(np.std(period_rewards)) / len(period_rewards) ** 0.5))
            memory.append(Memory.current().resident)
            files.append(len(list(Path("/proc/self/fd").iterdir())))  # Linux
    trend, means = LongRunTrend.from_periods(memory, files, rewards), np.array(rewards)[:, 0].reshape(2, -1).mean(1)
    rows = [
        ["resident memory, MiB", f"{memory[0]:.0f}", f"{memory[-1]:.0f}", f"{trend.growth:+.1%}"],
        ["open files", str(files[0]), str(files[-1]), f"{trend.opened:+d}"],
        ["mean reward by halves", *(f"{mean:.4f}" for mean in means), f"{trend.drift:+.4f} ± {trend.error:.4f}"],
    ]
    print(markdown_table(["", "first", "last", "change"], rows))
    return int(not trend.steady(options.may_grow))


def _step(envs: GlimpseVectorEnv, rng: np.random.Generator) -> list[float]:
    """Step environments with random actions; returns the rewards of the captions that end."""
    masked = envs.features.masks is not None
    actions = envs.action_space.sample() if masked else rng.integers(0, envs.features.shape[1], envs.num_envs)
    _, rewards, terminated, _, _ = envs.step(actions)
    if envs.autoreset_mode == AutoresetMode.DISABLED and terminated.any():
        envs.reset(options={"reset_mask": terminated})
    return rewards[terminated].tolist()


def main(options: Options) -> int:
    """Run a trial; returns its exit status."""
    trial = options.trial
    return min(resume(trial) if isinstance(trial, Resume) else steps(trial), 1)


if __name__ == "__main__":
    run_command(main, Options)
