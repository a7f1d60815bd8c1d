"""The report: one HTML file with the table, the learning curves and an explorer of captions, that needs no network.

Knows the page's parts and puts them together. What the page looks like and how it behaves is in page.html, page.css and
page.js; what the figures mean is for train.benchmark.results.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import glimpse_env
from glimpse_env.core.atomic_files import atomic_path
from train.benchmark.report.learning_curves import Curve, draw
from train.benchmark.report.scenes import Player, gather
from train.benchmark.results import Benchmark, columns, ranked
from train.evaluate.scoring import Interval, References

PARTS = Path(__file__).parent


class Report(NamedTuple):
    """What the page shows.

    Attributes:
        benchmark: the figures.
        curves: by agent how its runs learned.
        players: who said something of the images.
        references: of every image.
        names: of every image.
        image: the picture of a row.
    """

    benchmark: Benchmark
    curves: dict[str, list[Curve]]
    players: Sequence[Player]
    references: References
    names: Sequence[str]
    image: Callable[[int], Image.Image]


def write_report(path: Path, report: Report) -> Path:
    """Write the page atomically; returns its path."""
    page = assemble(report)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def assemble(report: Report) -> str:
    """The page. What comes from outside (names, captions, paths) is escaped, and no script but ours would run."""
    style, script = ((PARTS / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    titles = short_names([*report.benchmark.agents])
    curves = draw(report.curves, titles)
    parts = {
        "title": escape(report.benchmark.title),
        "heading": escape(f"{report.benchmark.env}, {report.benchmark.split}"),
        "summary": escape(_summary(report.benchmark)),
        "table": table(report.benchmark, titles),
        "curves": curves or "<p>No agent in the table has learned from reward here or comes with curves.</p>",
        "data": embedded(gather(report.players, titles, report.references, report.names, report.image)),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
    }
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], page)  # once: what is put in is not read again


def embedded(value: Any) -> str:
    """``value`` as JSON that may stand in a script element: no ``<`` is left that could end it."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    return written


def _hash(source: str) -> str:
    """What a content security policy calls an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _summary(benchmark: Benchmark) -> str:
    agents, options = len(benchmark.agents), benchmark.options
    parts = [
        f"{agents} agent{'' if agents == 1 else 's'} on {benchmark.images:,} images, "
        f"{' and '.join(options['decoders'])} words, seed {options['seed']}.",
        *([f"{benchmark.failures}."] if benchmark.failed else []),
        f"glimpse-env {glimpse_env.__version__}, {datetime.now():%Y-%m-%d %H:%M}.",
    ]
    return " ".join(parts)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """What is shown of agents' names: without the folders that paths begin with, where that leaves them different."""
    short = {name: re.sub(r"[^\s()]*/(?=[^\s()/])", "", name) for name in names}
    often = Counter(short.values())
    return {name: one if often[one] == 1 else name for name, one in short.items()}


def table(benchmark: Benchmark, titles: dict[str, str]) -> str:
    """The figures as an HTML table, the best BLEU-4 first, each row with BLEU-4 and its interval drawn on a scale."""
    head, rows = columns(benchmark.agents, benchmark.against)
    drawn = head.index("95 %")  # as a picture
    head[drawn] = "95 %, 0 to 1"
    cells = "".join(f'<th scope="col"{"" if name == "agent" else _class(name)}>{escape(name)}</th>' for name in head)
    lines = [f"<thead><tr>{cells}</tr></thead>", "<tbody>"]
    for row, (_, result) in zip(rows, ranked(benchmark.agents), strict=True):
        shown = [escape(cell) for cell in row]
        shown[drawn] = whisker(result.bleu4)
        first = f'<th scope="row" title="{shown[0]}">{escape(titles[row[0]])}</th>'
        rest = zip(head[1:], shown[1:], strict=True)
        lines.append(f"<tr>{first}{''.join(f'<td{_class(name)}>{cell}</td>' for name, cell in rest)}</tr>")
    return "\n".join(["<table>", *lines, "</tbody>", "</table>"])


def _class(column: str) -> str:
    return ' class="range"' if "95 %" in column or column.startswith("above") else ' class="figure"'


def whisker(found: Interval) -> str:
    """A figure between 0 and 1 as a dot on a line, its interval as a bar."""
    low, value, high = (4 + 112 * min(max(part, 0.0), 1.0) for part in (found.low, found.value, found.high))
    return (
        f'<svg class="whisker" viewBox="0 0 120 14" width="120" height="14" role="img" aria-label="{found}">'
        f"<title>{found}</title>"
        f'<line class="rule" x1="4" x2="116" y1="7" y2="7"/>'
        f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7"/>'
        f'<circle cx="{value:.1f}" cy="7" r="3.5"/></svg>'
    )
