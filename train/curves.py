"""Learning curves of runs, side by side in one picture.

Knows run directories and how to draw. It does not know how agents are trained or scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from glimpse_env.core.atomic_files import atomic_path
from train.benchmark.report.learning_curves import Curve, mean, read_curves, write_curves
from train.benchmark.seeds import seeds_of
from train.common.cli import run_command


@dataclass
class Options:
    """Draw learning curves: BLEU-4 on val by the words said in training."""

    runs: tyro.conf.Positional[list[str]] = tyro.MISSING
    """Run directories, or quoted patterns of them, such as "runs/shapes-ppo-?", whose runs are seeds of one agent; with
    NAME= before it, that is what the agent is called."""
    level: tyro.conf.UseAppendAction[list[str]] = field(default_factory=list)
    """A line to compare with, as NAME=BLEU-4; may be given again."""
    out: Path = Path("runs/curves.svg")
    """The picture; its ending says the format."""
    keep: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """CSV file for the points, as those of the shipped agents lie in agents/assets."""


def levels(told: Sequence[str]) -> dict[str, float]:
    """Lines to compare with, by name.

    Raises:
        ValueError: one is not written as NAME=BLEU-4.
    """
    found = {}
    for one in told:
        name, _, value = one.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"a level is written as NAME=BLEU-4, such as soft=0.992, not {one!r}")
    return found


def draw(path: Path, curves: dict[str, list[Curve]], compared: dict[str, float]) -> None:
    """Draw a thick line for the mean of each agent's runs and a band from the worst to the best of them.

    Args:
        path: the picture.
        curves: by agent.
        compared: BLEU-4 by name, drawn as lines across.
    """
    from matplotlib.figure import Figure

    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in curves.items():
        steps, middle = mean(runs)
        each = np.array([np.interp(steps, run.steps, run.bleu4) for run in runs])
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        (line,) = axes.plot(steps, middle, label=f"{name}{seeds}", linewidth=2)
        axes.fill_between(steps, each.min(0), each.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    for name, value in compared.items():
        axes.axhline(value, color="0.4", linewidth=1, linestyle="--")
        axes.annotate(
            name, (1, value), (-4, -11), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
        )
    axes.set(xlabel="words said in training", ylabel="BLEU-4 on val", xlim=(0, None))
    axes.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1e6:g} M" if steps else "0")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    with atomic_path(path) as partial:
        figure.savefig(
            partial, format=path.suffix.lstrip(".") or "svg", metadata={"Date": None} if path.suffix == ".svg" else None
        )


def named(run: str) -> tuple[str, str]:
    """A pattern of run directories and, before it, its name: by default its last part without the seed."""
    name, _, pattern = run.rpartition("=")
    return name or Path(pattern).name.rstrip("?*[]-0123456789") or pattern, pattern


def main(options: Options) -> None:
    """Read, draw and say where.

    Raises:
        FileNotFoundError: no run matches a pattern, or one has no scores.
    """
    compared = levels(options.level)
    asked = dict(map(named, options.runs))
    found = read_curves({name: seeds_of(pattern) for name, pattern in asked.items()})
    missing = [pattern for name, pattern in asked.items() if name not in found]
    if missing:
        raise FileNotFoundError(f"{missing[0]!r} has no metrics.csv with scores; name run directories of training")
    draw(options.out, found, compared)
    if options.keep is not None:
        write_curves(options.keep, found)
    print(f"curves of {', '.join(found)}: {options.out}")


if __name__ == "__main__":
    run_command(main, Options)
