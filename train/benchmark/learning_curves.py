"""Learning curves: BLEU-4 on val over the words said in training, read from run directories and plotted."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glimpse_env.core.atomic_files import atomic_path

FIELDS = ("agent", "run", "steps", "bleu4")  # of the CSV file


class Curve(NamedTuple):
    """The learning curve of one run."""

    run: str  # directory
    steps: npt.NDArray[np.float64]  # words said in training at each score, (S,)
    bleu4: npt.NDArray[np.float64]  # corpus BLEU-4 on val, (S,)


def read_curve(run: Path) -> Curve | None:
    """The curve of a run directory; None without a metrics.csv or with fewer than two scores in it.

    Raises:
        ValueError: its metrics.csv is damaged, or holds what is not a number.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        points = [(float(row["charts/steps"]), float(row["val/bleu4"])) for row in rows if row.get("val/bleu4")]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} holds no learning curve ({error!r}); train the run again") from error
    if len(points) < 2:
        return None
    steps, bleu4 = np.array(points).T
    return Curve(str(run), steps, bleu4)


def read_curves(agents: dict[str, list[str]]) -> dict[str, list[Curve]]:
    """The curves of the agents that have any, by name; ``agents`` has, by name, what was scored for each seed."""
    curves = {name: [*filter(None, map(read_curve, map(Path, runs)))] for name, runs in agents.items()}
    return {name: runs for name, runs in curves.items() if runs}


def write_curves(path: Path, curves: dict[str, list[Curve]]) -> None:
    """Write curves as CSV, one score a line: agent, run, steps, bleu4."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for name, run in [(name, run) for name, runs in curves.items() for run in runs]:
            points = zip(run.steps.tolist(), run.bleu4.tolist(), strict=True)
            writer.writerows([name, run.run, f"{steps:.0f}", f"{bleu4:.6g}"] for steps, bleu4 in points)


def load_curves(path: Path) -> dict[str, list[Curve]]:
    """Read a CSV file of ``write_curves``; empty where there is no such file."""
    if not path.is_file():
        return {}
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for agent, run, steps, bleu4 in list(csv.reader(file))[1:]:
            points.setdefault(agent, {}).setdefault(run, []).append((float(steps), float(bleu4)))
    return {agent: [Curve(run, *np.array(scores).T) for run, scores in runs.items()] for agent, runs in points.items()}


def align(runs: Sequence[Curve]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The steps of the first run, as far as all runs go, (S,), and BLEU-4 of every run at them, (R, S)."""
    steps = runs[0].steps[runs[0].steps <= min(run.steps[-1] for run in runs)]
    return steps, np.array([np.interp(steps, run.steps, run.bleu4) for run in runs])


def plot_curves(curves: dict[str, list[Curve]], size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Plot the mean of each agent's runs as a line, and the range from the worst to the best run as a band.

    ``size`` is the width and height of the figure in inches.
    """
    figure = Figure(size, layout="constrained")
    axes = figure.add_subplot()
    for name, runs in curves.items():
        steps, bleu4 = align(runs)
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        (line,) = axes.plot(steps, bleu4.mean(0), label=f"{name}{seeds}", linewidth=2)
        band = np.append(steps, steps[::-1]), np.append(bleu4.min(0), bleu4.max(0)[::-1])
        axes.fill(*band, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="words said in training", ylabel="BLEU-4 on val", xlim=(0, None))
    axes.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1e6:g} M" if steps else "0")
    axes.grid(alpha=0.25)
    return figure, axes
