"""The report's learning curves: an HTML figure for each agent, with inline SVG that page.css colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

import matplotlib as mpl
import numpy as np

from train.benchmark.learning_curves import Curve, plot_curves


def render_panels(curves: dict[str, list[Curve]], titles: dict[str, str]) -> str:
    """All agents' curves as HTML figures with one BLEU-4 axis, titled as ``titles`` says; "" when there are none."""
    if not curves:
        return ""
    lowest = min(float(run.bleu4.min()) for runs in curves.values() for run in runs)
    bottom = float(np.floor(10 * min(lowest, 0.9)) / 10)
    return "\n".join(_panel(name, titles.get(name, name), runs, bottom) for name, runs in curves.items())


def _panel(name: str, title: str, runs: Sequence[Curve], bottom: float) -> str:
    best = [float(run.bleu4.max()) for run in runs]
    summary = f"best {np.mean(best):.3f}" + (f", mean of {len(best)} seeds" if len(best) > 1 else "")
    heading = f"<strong>{escape(title)}</strong> <span>{summary}</span>"
    label = f"{escape(title)}: BLEU-4 on val over words said in training, {summary}"
    return (
        f'<figure class="curve"><figcaption title="{escape(name)}">{heading}</figcaption>'
        f'<svg role="img" aria-label="{label}"{_svg(runs, bottom)}</figure>'
    )


def _svg(runs: Sequence[Curve], bottom: float) -> str:
    """What follows ``<svg`` in the plot of one agent, without ids, links and inline styles.

    The page's content security policy blocks inline styles, and ids would repeat from panel to panel.
    """
    figure, axes = plot_curves({"": list(runs)}, (4.0, 2.6))
    figure.patch.set_visible(False)
    axes.set_frame_on(False)
    axes.set_ylim(bottom, 1)
    axes.tick_params(length=0)
    axes.lines[0].set_gid("mean")
    axes.patches[0].set_gid("range")
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg")
    svg = re.sub(r"<(metadata|defs)>.*?</\1>", "", file.getvalue().partition("<svg")[2], flags=re.S)
    svg = re.sub(r'id="(mean|range)"', r'class="\1"', svg)
    svg = re.sub(r'style="[^"]*?(text-anchor): (\w+)[^"]*"', r'\1="\2"', svg)
    return re.sub(r' (id|style|clip-path|xmlns:xlink|width|height)="[^"]*"|\n\s*', "", svg)
