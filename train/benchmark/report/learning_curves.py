"""Learning curves of runs, drawn as SVG: BLEU-4 on val over training steps, a panel an agent, a line a seed.

Knows the metrics.csv of a run directory and how to draw lines. It does not know what was trained, nor the page.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from glimpse_env.core.atomic_files import atomic_path

WIDTH, HEIGHT = 320, 200
FIELDS = ("agent", "run", "steps", "bleu4")  # of curves that are kept
LEFT, RIGHT, TOP, BOTTOM = 38, 12, 12, 28  # margins that hold the labels


class Curve(NamedTuple):
    """How one run learned.

    Attributes:
        run: its directory.
        steps: words said in training at each score, (S,), float64.
        bleu4: corpus BLEU-4 on val, (S,), float64.
    """

    run: str
    steps: npt.NDArray[np.float64]
    bleu4: npt.NDArray[np.float64]


def read_curve(run: Path) -> Curve | None:
    """The curve of a run directory; None where there is none, such as of an agent that is a file or a name.

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
    """The curves of the agents that have some, by the agent's name.

    Args:
        agents: by name what was scored for each seed, run directories among them.
    """
    found = {name: [read_curve(Path(run)) for run in runs] for name, runs in agents.items()}
    curves = {name: [one for one in each if one is not None] for name, each in found.items()}
    return {name: each for name, each in curves.items() if each}


def write_curves(path: Path, curves: dict[str, list[Curve]]) -> None:
    """Write curves as CSV, a line a score: agent, run, steps, bleu4."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(FIELDS)
    for name, runs in curves.items():
        for run in runs:
            points = zip(run.steps.tolist(), run.bleu4.tolist(), strict=True)
            writer.writerows([name, run.run, f"{steps:.0f}", f"{bleu4:.6g}"] for steps, bleu4 in points)
    with atomic_path(path) as partial:
        partial.write_text(file.getvalue(), encoding="utf-8")


def kept_curves(path: Path) -> dict[str, list[Curve]]:
    """What ``write_curves`` has written; nothing where there is no such file."""
    if not path.is_file():
        return {}
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for agent, run, steps, bleu4 in list(csv.reader(file))[1:]:
            points.setdefault(agent, {}).setdefault(run, []).append((float(steps), float(bleu4)))
    return {agent: [Curve(run, *np.array(each).T) for run, each in runs.items()] for agent, runs in points.items()}


def figure(name: str, title: str, curves: Sequence[Curve], low: float) -> str:
    """One agent's curves as an HTML figure with inline SVG: each seed a thin line, their mean a thick one.

    Args:
        name: the agent's.
        title: what is shown of it.
        curves: of its runs.
        low: BLEU-4 at the bottom of the axis; the top is 1.
    """
    longest = max(float(curve.steps[-1]) for curve in curves) or 1.0

    def place(steps: npt.NDArray[np.float64], bleu4: npt.NDArray[np.float64]) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * steps / longest
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (bleu4 - low) / (1 - low))
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

    best = [float(curve.bleu4.max()) for curve in curves]
    said = f"best {np.mean(best):.3f}" + (f", mean of {len(best)} seeds" if len(best) > 1 else "")
    drawn = [_axes(low, longest)]
    if len(curves) > 1:
        for curve in curves:
            drawn.append(f'<polyline class="seed" points="{place(curve.steps, curve.bleu4)}"/>')
    drawn.append(f'<polyline class="mean" points="{place(*mean(curves))}"/>')
    shown = escape(title)
    return (
        f'<figure class="curve"><figcaption title="{escape(name)}"><strong>{shown}</strong> <span>{said}</span>'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{shown}: BLEU-4 on val over training '
        f'steps, {said}">{"".join(drawn)}</svg></figure>'
    )


def mean(curves: Sequence[Curve]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean over runs, at the steps of the first, as far as all runs go."""
    steps = curves[0].steps[curves[0].steps <= min(curve.steps[-1] for curve in curves)]
    return steps, np.mean([np.interp(steps, curve.steps, curve.bleu4) for curve in curves], 0)


def _axes(low: float, longest: float) -> str:
    """Lines and labels: BLEU-4 upwards from ``low`` to 1, steps to the right."""
    parts = []
    bottom = HEIGHT - BOTTOM
    apart = 0.2 if low < 0.5 else 0.1 if low < 0.8 else 0.05
    for value in np.arange(1, low - 1e-9, -apart):
        y = bottom - (bottom - TOP) * (value - low) / (1 - low)
        label = f"{value:.2f}" if apart < 0.1 else f"{value:.1f}"
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = LEFT + (WIDTH - LEFT - RIGHT) * share
        label = f"{_count(share * longest)} steps" if share == 1 else _count(share * longest)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    return "".join(parts)


def _count(steps: float) -> str:
    """A number of steps, short: 0, 125 k, 2.0 M."""
    if steps >= 999_500:
        return f"{steps / 1e6:.1f} M"
    return f"{steps / 1e3:.0f} k" if steps >= 1000 else f"{steps:.0f}"


def draw(curves: dict[str, list[Curve]], titles: dict[str, str]) -> str:
    """All agents' curves, on one BLEU-4 axis; an empty string when there are none.

    Args:
        curves: by the agent's name.
        titles: what is shown of a name, if it is not the name.
    """
    if not curves:
        return ""
    least = min(float(curve.bleu4.min()) for each in curves.values() for curve in each)
    low = float(np.floor(10 * min(least, 0.9)) / 10)
    return "\n".join(figure(name, titles.get(name, name), each, low) for name, each in curves.items())
