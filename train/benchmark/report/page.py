"""The report as one HTML file that needs no network: page.html, page.css, page.js and the benchmark's data."""

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
from train.benchmark.learning_curves import Curve
from train.benchmark.report.curve_panels import render_panels
from train.benchmark.report.scenes import collect_scenes
from train.benchmark.results import Benchmark, columns, ranked
from train.evaluate.evaluation import Evaluation
from train.evaluate.scoring import Interval

FOLDER = Path(__file__).parent


class Report(NamedTuple):
    """The contents of the page."""

    benchmark: Benchmark
    curves: dict[str, list[Curve]]  # of each agent's runs, by the agent's name
    evaluations: dict[str, Evaluation]  # of the same images, by the agent's name
    image: Callable[[int], Image.Image]  # the picture of a row


def write_report(path: Path, report: Report) -> Path:
    """Write the page atomically; returns its path."""
    with atomic_path(path) as partial:
        partial.write_text(render_page(report), encoding="utf-8")
    return path


def render_page(report: Report) -> str:
    """The page. Names, captions and paths are escaped, and the content security policy allows page.js alone to run."""
    style, script = ((FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    titles = short_names([*report.benchmark.agents])
    curves = render_panels(report.curves, titles)
    values = {
        "title": escape(report.benchmark.title),
        "heading": escape(f"{report.benchmark.env}, {report.benchmark.split}"),
        "summary": escape(_summary(report.benchmark)),
        "table": _table(report.benchmark, titles),
        "curves": curves or "<p>No agent in the table has learned from reward here or comes with curves.</p>",
        "data": embed_json(collect_scenes(report.evaluations, titles, report.image)),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
    }
    page = (FOLDER / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: values[mark[1]], page)  # in one pass: values are not searched again


def embed_json(value: Any) -> str:
    """``value`` as JSON for a script element: no ``<`` is left that could close the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _hash(source: str) -> str:
    """The source expression of an inline script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _summary(benchmark: Benchmark) -> str:
    agents, options = len(benchmark.agents), benchmark.options
    sentences = [
        f"{agents} agent{'' if agents == 1 else 's'} on {benchmark.images:,} images, "
        f"{' and '.join(options['decoders'])} words, seed {options['seed']}.",
        *([f"{benchmark.failures}."] if benchmark.failed else []),
        f"glimpse-env {glimpse_env.__version__}, {datetime.now():%Y-%m-%d %H:%M}.",
    ]
    return " ".join(sentences)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Titles of agents: their names without the folders of paths, where the titles then still differ."""
    short = {name: re.sub(r"[^\s()]*/(?=[^\s()/])", "", name) for name in names}
    counts = Counter(short.values())
    return {name: title if counts[title] == 1 else name for name, title in short.items()}


def _table(benchmark: Benchmark, titles: dict[str, str]) -> str:
    """The figures as an HTML table, the best BLEU-4 first, with the interval of BLEU-4 drawn on a scale from 0 to 1."""
    head, rows = columns(benchmark.agents, benchmark.against)
    drawn = head.index("95 %")
    head[drawn] = "95 %, 0 to 1"
    cells = "".join(f'<th scope="col"{"" if name == "agent" else _class(name)}>{escape(name)}</th>' for name in head)
    lines = [f"<thead><tr>{cells}</tr></thead>", "<tbody>"]
    for row, (_, result) in zip(rows, ranked(benchmark.agents), strict=True):
        texts = [escape(cell) for cell in row]
        texts[drawn] = _whisker(result.bleu4)
        first = f'<th scope="row" title="{texts[0]}">{escape(titles[row[0]])}</th>'
        rest = zip(head[1:], texts[1:], strict=True)
        lines.append(f"<tr>{first}{''.join(f'<td{_class(name)}>{text}</td>' for name, text in rest)}</tr>")
    return "\n".join(["<table>", *lines, "</tbody>", "</table>"])


def _class(column: str) -> str:
    return ' class="range"' if "95 %" in column or column.startswith("above") else ' class="figure"'


def _whisker(interval: Interval) -> str:
    """A figure between 0 and 1 as a dot on a line, its interval as a bar."""
    low, value, high = (4 + 112 * min(max(bound, 0.0), 1.0) for bound in (interval.low, interval.value, interval.high))
    return (
        f'<svg class="whisker" viewBox="0 0 120 14" width="120" height="14" role="img" aria-label="{interval}">'
        f"<title>{interval}</title>"
        f'<line class="rule" x1="4" x2="116" y1="7" y2="7"/>'
        f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7"/>'
        f'<circle cx="{value:.1f}" cy="7" r="3.5"/></svg>'
    )
