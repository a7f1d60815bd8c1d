"""What ``make weights`` trains, read off the Makefile: every run, its command, and the runs before it.

Knows the training commands' options. It does not train, and does not know what is made of the runs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from agents.loading import ASSETS, IDS_OF
from glimpse_env.models.captioner import captioner_path
from train.captioner import options as captioner_options
from train.reinforce import options as reinforce_options
from train.sb3 import options as sb3_options

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, Any] = {
    "train.captioner": captioner_options,
    "train.reinforce": reinforce_options,
    "train.sb3": sb3_options,
}


class Step(NamedTuple):
    """A command of ``make weights``.

    Attributes:
        command: as a person types it.
        options: that it comes to.
    """

    command: str
    options: Any

    @property
    def dataset(self) -> str:
        """It trains on."""
        named: str | None = getattr(self.options, "dataset", None)
        return named or next(short for short, env in IDS_OF.items() if env == self.options.env)


def recipe() -> dict[str, Step]:
    """The trainings of ``make weights`` by run directory, in their order."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "--dry-run", "weights", "VENV_PYTHON=python"]
    printed = subprocess.run(command, cwd=ROOT, env=clean, check=True, capture_output=True, text=True).stdout
    steps: dict[str, Step] = {}
    for line in printed.replace("\\\n", " ").splitlines():
        words = shlex.split(line) if line.startswith("python -m ") else []
        if not words or words[2] not in COMMANDS:
            continue
        module = COMMANDS[words[2]]
        options = module.settle(tyro.cli(module.Options, args=words[3:]))
        steps[str(options.run_dir)] = Step(shlex.join(words), options)
    return steps


def line_of_descent(run: str, steps: dict[str, Step]) -> tuple[list[Step], Path | None]:
    """The trainings that led to a run, the first one first, and the shipped file that they started from, if any.

    Raises:
        ValueError: ``make weights`` has no such run.
    """
    if run not in steps:
        raise ValueError(f"make weights leaves no run {run!r}; it leaves {', '.join(steps)}")
    step = steps[run]
    start = getattr(step.options, "start", None)
    if start is None:
        return [step], None
    if start in steps:
        before, origin = line_of_descent(start, steps)
        return [*before, step], origin
    if isinstance(step.options, captioner_options.Options):
        return [step], captioner_path(start)
    return [step], ASSETS / f"{step.dataset}-{start}.safetensors"
