"""Draw the learning curves of runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from glimpse_env.core.atomic_files import atomic_path
from train.benchmark.learning_curves import Curve, plot_curves, read_curves, write_curves
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


def parse_levels(arguments: Sequence[str]) -> dict[str, float]:
    """Lines to compare with, by name; ValueError for an argument that is not written as NAME=BLEU-4."""
    levels = {}
    for argument in arguments:
        name, _, value = argument.rpartition("=")
        try:
            levels[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"a level is written as NAME=BLEU-4, such as soft=0.992, not {argument!r}")
    return levels


def save_plot(path: Path, curves: dict[str, list[Curve]], levels: dict[str, float]) -> None:
    """Plot curves, with a horizontal line for each level, in the format that the file's name ends in."""
    figure, axes = plot_curves(curves, (8, 4.5))
    for name, bleu4 in levels.items():
        axes.axhline(bleu4, color="0.4", linewidth=1, linestyle="--")
        axes.annotate(name, (1, bleu4), (-4, -11), ("axes fraction", "data"), "offset points", ha="right")
    axes.legend(frameon=False, loc="lower right")
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with atomic_path(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "svg", metadata=metadata)


def split_name(run: str) -> tuple[str, str]:
    """The agent's name and the pattern of ``NAME=PATTERN``; by default the last folder without the seed is the name."""
    name, _, pattern = run.rpartition("=")
    return name or Path(pattern).name.rstrip("?*[]-0123456789") or pattern, pattern


def main(options: Options) -> None:
    """Read the curves, draw them and print where the picture is.

    Raises:
        FileNotFoundError: no run matches a pattern, or an agent's runs have no scores.
    """
    levels = parse_levels(options.level)
    patterns = dict(map(split_name, options.runs))
    curves = read_curves({name: seeds_of(pattern) for name, pattern in patterns.items()})
    missing = [pattern for name, pattern in patterns.items() if name not in curves]
    if missing:
        raise FileNotFoundError(f"{missing[0]!r} has no metrics.csv with scores; name run directories of training")
    save_plot(options.out, curves, levels)
    if options.keep is not None:
        write_curves(options.keep, curves)
    print(f"curves of {', '.join(curves)}: {options.out}")


if __name__ == "__main__":
    run_command(main, Options)
