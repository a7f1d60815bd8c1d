"""Long trials of what must hold for hours: runs killed again and again resume to the same weights, memory stays flat.

Knows how to hurt and what to compare. It knows no training command but by its name, and no environment but by its id.
"""

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

from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.registration import IDS
from train.common.cli import run_command
from train.common.formatting import markdown_table
from train.throughput.environments import Memory

SHORT = "--limit 64 --threads 1 --checkpoint-minutes 0.0005"
CAPTIONER = f"--dataset shapes --epochs 2 --batch-images 4 --tile-steps 20 {SHORT}"
REINFORCE = f"--images 4 --rollouts 3 --updates 60 --validate-every 20 {SHORT}"
WORDS = REINFORCE.replace("60", "20").replace("every 20", "every 10")  # to train the decoder takes longer
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
CLOCKS = ("seconds", "charts/seconds", "charts/tokens_per_second")  # what no two runs share
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
    """Run a training command in this process, all that it says, and its traceback, into a file from now on."""
    command = importlib.import_module(module)
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    command.main(tyro.cli(command.Options, args=arguments))


class Killer:
    """Runs a training command, and kills it at random moments.

    Args:
        name: one of ``TRAININGS``.
        folder: where its runs lie.
        rng: says when.

    Attributes:
        resumed: how often a run went on from a checkpoint.

    Raises:
        ValueError: there is no such training.
        FileExistsError: its folder is there already.
    """

    def __init__(self, name: str, folder: Path, rng: np.random.Generator) -> None:
        if name not in TRAININGS:
            raise ValueError(f"unknown training {name!r}; expected one of {', '.join(TRAININGS)}")
        self.module, words = TRAININGS[name]
        self.words, self.folder, self.rng = words.split(), folder / name, rng
        self.resumed = 0
        if self.folder.exists():
            raise FileExistsError(f"{str(self.folder)!r} is there already; name another folder, or delete it")
        self.folder.mkdir(parents=True)
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload([module for module, _ in TRAININGS.values()])

    def run(self, run: Path, patience: float | None = None) -> bool:
        """Start or resume; whether it came to its end before it was killed.

        Args:
            run: the run directory.
            patience: seconds before the kill; None for no kill.

        Raises:
            RuntimeError: the command failed by itself.
        """
        resume = ["--resume"] if (run / "checkpoint.pt").exists() else []
        self.resumed += len(resume)
        log = self.folder / f"{run.name}.txt"
        arguments = [*self.words, *resume, "--run-dir", str(run)]
        process = self.processes.Process(target=train, args=(self.module, arguments, log))
        process.start()
        process.join(patience)
        killed = process.is_alive()
        if killed:
            process.kill()
            process.join()
        if process.exitcode != 0 and not (killed and process.exitcode == -signal.SIGKILL):
            raise RuntimeError(f"{self.module} {' '.join(arguments)} failed by itself; {log} has its words")
        return process.exitcode == 0

    def trial(self, kills: int) -> Iterator[str | None]:
        """Kill so often, beginning new runs as they end; yields after each kill, at the end of a run what differs."""
        whole = self.folder / "whole"
        began = time.monotonic()
        self.run(whole)
        seconds, done, number = time.monotonic() - began, 0, 0
        while done < kills or not self.resumed:
            run = self.folder / f"killed-{number}"
            while not self.run(run, None if done >= kills and self.resumed else float(self.rng.uniform(0, seconds))):
                done += 1
                yield None
            difference = compare(whole, run)
            yield difference or ""
            if difference is None:  # else it is kept, to be looked at
                shutil.rmtree(run)
            number += 1


def compare(one: Path, other: Path) -> str | None:
    """The first thing in which two run directories differ, clocks aside; None where there is none."""
    states = [torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True) for run in (one, other)]
    if where := _difference(*states):
        return f"checkpoint.pt: {where}"
    tables = []
    for run in (one, other):
        with (run / "metrics.csv").open(newline="") as file:
            tables.append([{**row, **dict.fromkeys(CLOCKS)} for row in csv.DictReader(file)])
    if tables[0] != tables[1]:
        return "metrics.csv"
    names = [sorted(path.name for path in run.glob("*.safetensors")) for run in (one, other)]
    if names[0] != names[1]:
        return f"files {names}"
    return next((name for name in names[0] if (one / name).read_bytes() != (other / name).read_bytes()), None)


def _difference(one: Any, other: Any, name: str = "") -> str | None:
    """Where two states of tensors, numbers, lists and dicts differ."""
    if isinstance(one, torch.Tensor):
        alike = one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())
        return None if alike else name
    if isinstance(one, (dict, list, tuple)):
        keys = list(one) if isinstance(one, dict) else list(range(len(one)))
        if len(one) != len(other):
            return name
        parts = (_difference(one[key], other[key], f"{name}[{key!r}]") for key in keys if key not in CLOCKS)
        return next((part for part in parts if part is not None), None)
    return None if one == other or (one != one and other != other) else name


def resume(options: Resume) -> int:
    """Run the trial; the number of commands that failed it.

    Raises:
        ValueError: fewer than one kill.
    """
    if options.kills < 1:
        raise ValueError(f"kills must be at least 1, got {options.kills}")
    kept = options.folder or Path(tempfile.mkdtemp(prefix="glimpse-soak-"))
    rows, failed = [], 0
    for place, name in enumerate(options.trainings):
        killer = Killer(name, kept, np.random.default_rng([options.seed, place]))
        runs, done, differences = 0, 0, set()
        with tqdm(total=options.kills, desc=name, unit="kill") as bar:
            for told in killer.trial(options.kills):
                if told is None:
                    done += 1
                    bar.update()
                else:
                    runs += 1
                    differences |= {told} - {""}
        failed += bool(differences)
        found = ", ".join(sorted(differences)) or "none"
        rows.append([name, str(done), str(killer.resumed), str(runs), found])
    print(markdown_table(["training", "kills", "resumed", "runs", "differences"], rows))
    if failed:
        print(f"the runs that differ, and the ones left alone, are in {kept}")
    elif options.folder is None:
        shutil.rmtree(kept)
    return failed


def open_files() -> int:
    """How many this process has (Linux)."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Course(NamedTuple):
    """How a long trial went.

    Attributes:
        growth: of the resident memory, as a share.
        opened: files more at the end than at the beginning.
        drift: of the mean reward, from the first half to the second.
        error: its standard error.
    """

    growth: float
    opened: int
    drift: float
    error: float

    @classmethod
    def of(cls, memory: list[float], files: list[int], rewards: list[tuple[float, float]]) -> Course:
        """Of each part of the trial: resident memory, open files, and the mean reward with its standard error."""
        halves = [np.array(half) for half in (rewards[: len(rewards) // 2], rewards[len(rewards) // 2 :])]
        drift = float(halves[1][:, 0].mean() - halves[0][:, 0].mean())
        error = float(np.sqrt(sum((half[:, 1] ** 2).sum() / len(half) ** 2 for half in halves)))
        return cls(memory[-1] / memory[0] - 1, files[-1] - files[0], drift, error)

    def steady(self, may_grow: float) -> bool:
        """Whether nothing grew or drifted; what is not a number is not steady."""
        return self.growth <= may_grow and self.opened <= 0 and abs(self.drift) <= 4 * self.error


def steps(options: Steps) -> int:
    """Run the trial; 1 if something grew or drifted.

    Raises:
        ValueError: there is no such environment, or the steps are too few.
    """
    if options.env not in IDS:
        raise ValueError(f"unknown environment {options.env!r}; expected one of {', '.join(IDS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    made = {"split": options.split, "observe": "index"}
    all_envs = [GlimpseVectorEnv(options.num_envs, IDS[options.env], autoreset_mode=mode, **made) for mode in MODES]
    rng = np.random.default_rng(options.seed)
    for place, envs in enumerate(all_envs):
        envs.reset(seed=options.seed + place * options.num_envs)
    total = -(-options.steps // options.num_envs)
    parts = np.array_split(np.arange(total), 20)
    rewards, memory, files = [], [], []
    with tqdm(total=total * options.num_envs, desc=options.env, unit="step", unit_scale=True) as bar:
        for part in parts:
            earned, ended = [], 0
            for step in part.tolist():
                envs = all_envs[step // 50 % len(MODES)]  # stretches of each mode
                actions = rng.integers(0, envs.single_action_space.n, options.num_envs)
                _, paid, terminated, _, _ = envs.step(actions)
                if envs.autoreset_mode == AutoresetMode.DISABLED and terminated.any():
                    envs.reset(options={"reset_mask": terminated})
                earned.extend(paid[terminated].tolist())
                ended += int(terminated.sum())
                bar.update(options.num_envs)
            if not ended:
                raise ValueError(f"a twentieth of {options.steps} steps ends no caption; take more --steps")
            rewards.append((float(np.mean(earned)), float(np.std(earned)) / ended**0.5))
            memory.append(Memory.now().resident)
            files.append(open_files())
    course, means = Course.of(memory, files, rewards), np.array(rewards)[:, 0].reshape(2, -1).mean(1)
    rows = [
        ["resident memory, MiB", f"{memory[0]:.0f}", f"{memory[-1]:.0f}", f"{course.growth:+.1%}"],
        ["open files", str(files[0]), str(files[-1]), f"{course.opened:+d}"],
        ["mean reward by halves", *(f"{mean:.4f}" for mean in means), f"{course.drift:+.4f} ± {course.error:.4f}"],
    ]
    print(markdown_table(["", "first", "last", "change"], rows))
    return int(not course.steady(options.may_grow))


def main(options: Options) -> int:
    """Run a trial; its exit status."""
    trial = options.trial
    return min(resume(trial) if isinstance(trial, Resume) else steps(trial), 1)


if __name__ == "__main__":
    run_command(main, Options)
