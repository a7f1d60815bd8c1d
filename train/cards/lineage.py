"""The trainings of ``make weights``, read from trainings.txt: their commands, and the runs that a run started from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from agents.loading import ASSETS
from glimpse_env.datasets import world_of
from glimpse_env.models.captioner import captioner_path
from train.captioner import options as captioner_options
from train.reinforce import options as reinforce_options
from train.sb3 import options as sb3_options

TRAININGS = Path(__file__).parent / "trainings.txt"
COMMANDS: dict[str, Any] = {
    "train.captioner": captioner_options,
    "train.reinforce": reinforce_options,
    "train.sb3": sb3_options,
}


class Training(NamedTuple):
    """A command of trainings.txt."""

    command: str  # its line for a shell
    options: Any  # of the command, with defaults

    @property
    def dataset(self) -> str:
        """Short name of the dataset."""
        return getattr(self.options, "dataset", None) or world_of(self.options.env).name


def read_trainings() -> dict[str, Training]:
    """The trainings by run directory, in their order."""
    trainings: dict[str, Training] = {}
    for line in TRAININGS.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            module = COMMANDS[words[0]]
            options = module.resolve_defaults(tyro.cli(module.Options, args=words[1:]))
            trainings[str(options.run_dir)] = Training(shlex.join(["python", "-m", *words]), options)
    return trainings


def lineage(run: str, trainings: dict[str, Training]) -> tuple[list[Training], Path | None]:
    """The trainings that led to a run, the first one first, and the shipped file that they started from, if any.

    Raises:
        ValueError: no training has this run directory.
    """
    if run not in trainings:
        raise ValueError(f"make weights leaves no run {run!r}; it leaves {', '.join(trainings)}")
    training = trainings[run]
    start = getattr(training.options, "start", None)
    if start is None:
        return [training], None
    if start in trainings:
        earlier, origin = lineage(start, trainings)
        return [*earlier, training], origin
    if isinstance(training.options, captioner_options.Options):
        return [training], captioner_path(start)
    return [training], ASSETS / f"{training.dataset}-{start}.safetensors"
