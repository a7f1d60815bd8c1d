"""Results of a benchmark: the figures of every agent as a table, as CSV, and as JSON that can be read again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glimpse_env.core.atomic_files import atomic_path
from train.benchmark.seeds import mean_figures, mean_values
from train.common.formatting import markdown_table, write_json
from train.evaluate.attention_metrics import AttentionMetrics
from train.evaluate.coco import coco_scores
from train.evaluate.evaluation import Evaluation
from train.evaluate.scoring import Interval, Scores, bootstrap, bootstrap_iqm, interval, sentence_scores

FORMAT = "glimpse-benchmark-2"  # of results.json; raise it when a figure's name or meaning changes


class Result(NamedTuple):
    """Figures of one agent over its runs, one run a seed; without an interval they are means over seeds."""

    scores: Scores
    attention_metrics: AttentionMetrics
    bleu4: Interval  # over images and seeds
    iqm: Interval  # interquartile mean of sentence BLEU-4 over seeds and images together
    above: Interval | None  # BLEU-4 minus that of the agent to compare with, if one was named
    metrics: dict[str, float]  # the world's, other than BLEU, by name
    coco: dict[str, float]  # METEOR, ROUGE-L and CIDEr-D by name; empty without --coco
    seeds: list[str]  # the agents that were scored


class Benchmark(NamedTuple):
    """The results of a benchmark, as ``results.json`` has them."""

    env: str  # id of the environment
    split: str
    options: dict[str, Any]  # of decoding
    against: str | None  # the agent that ``Result.above`` compares with
    agents: dict[str, Result]  # by name
    failed: dict[str, str]  # error messages of agents that could not be scored, by name

    @property
    def images(self) -> int:
        """Number of images."""
        return next((result.scores.num_images for result in self.agents.values()), 0)

    @property
    def title(self) -> str:
        """Environment, split, images and decoders in a line."""
        return f"{self.env}, {self.split}, {self.images:,} images, {' '.join(self.options['decoders'])} words"

    @property
    def failures(self) -> str:
        """The agents that could not be scored and their errors, in a line; empty without any."""
        errors = "; ".join(f"{name} ({error})" for name, error in self.failed.items())
        return f"Failed, and not in the table: {errors}" if errors else ""


def summarise(
    runs: Sequence[Evaluation], baseline: Sequence[Evaluation], seeds: list[str], seed: int = 0, coco: bool = False
) -> Result:
    """Figures of one agent.

    Args:
        runs: one for each of ``seeds``, of the same images.
        baseline: the runs of the agent to compare with; empty without one.
        seeds: the agents that were scored.
        seed: of the resamples.
        coco: whether to compute METEOR, ROUGE-L and CIDEr-D.
    """
    references = runs[0].references
    captions, baseline_captions = (
        [[caption.words for caption in run.captions] for run in group] for group in (runs, baseline)
    )
    sentence_bleu = np.array([sentence_scores(run.captions, references) for run in runs])  # (R, N)

    def bleu4_interval(against: list[list[list[str]]]) -> Interval:
        return interval(bootstrap(captions, references, np.random.default_rng(seed), against=against))

    return Result(
        scores=mean_figures([run.scores for run in runs])._replace(num_images=len(references)),
        attention_metrics=mean_figures([run.attention_metrics for run in runs]),
        bleu4=bleu4_interval([]),
        iqm=interval(bootstrap_iqm(sentence_bleu, np.random.default_rng(seed))),
        above=bleu4_interval(baseline_captions) if baseline else None,
        metrics=mean_values([run.metrics for run in runs]),
        coco=mean_values([coco_scores(run, references) for run in captions]) if coco else {},
        seeds=seeds,
    )


def ranked(results: dict[str, Result]) -> list[tuple[str, Result]]:
    """Results, the best BLEU-4 first."""
    return sorted(results.items(), key=lambda item: -item[1].scores.bleu[3])


def columns(results: dict[str, Result], against: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, the best BLEU-4 first, without columns that have no figure."""
    head = ["agent", "seeds", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "95 %", "IQM", "IQM 95 %", f"above {against}"]
    metric_names = list(dict.fromkeys(name for result in results.values() for name in result.metrics))
    head += ["METEOR", "CIDEr-D", *metric_names, "length", "bad endings", "grounding", "empty"]
    rows = []
    for name, result in ranked(results):
        scores, attention, above = result.scores, result.attention_metrics, result.above
        cells: list[Any] = [name, str(len(result.seeds)), *scores.bleu, _range(result.bleu4)]
        cells += [result.iqm.value, _range(result.iqm)]
        cells += [None if above is None else f"{above.value:+.4f} [{above.low:+.4f}, {above.high:+.4f}]"]
        cells += [result.coco.get("meteor"), result.coco.get("cider_d"), *map(result.metrics.get, metric_names)]
        cells += [f"{scores.length_ratio:.2f}"]
        rows.append([*cells, scores.bad_endings, attention.grounding, attention.empty])
    filled = [column for column in range(len(head)) if any(row[column] is not None for row in rows)]
    return [head[column] for column in filled], [[_cell(row[column]) for column in filled] for row in rows]


def table(results: dict[str, Result], against: str | None = None) -> str:
    """``columns`` as Markdown."""
    return markdown_table(*columns(results, against))


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f}–{interval.high:.3f}"


def _cell(value: str | float | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.3f}"


def as_csv(results: dict[str, Result]) -> str:
    """Every figure at full precision as CSV, one agent a line, the best BLEU-4 first; unknown figures are empty."""
    rows = []
    for name, result in ranked(results):
        scores = result.scores._asdict()
        row: dict[str, Any] = {"agent": name, "seeds": len(result.seeds), "images": scores.pop("num_images")}
        row |= {f"bleu{order}": value for order, value in enumerate(scores.pop("bleu"), 1)}
        for field in ("bleu4", "iqm", "above"):
            bounds = getattr(result, field) or (None, None, None)
            row |= dict(zip((field, f"{field}_low", f"{field}_high"), bounds, strict=True))
        rows.append(row | scores | result.attention_metrics._asdict() | result.metrics | result.coco)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write_results(folder: Path, benchmark: Benchmark) -> str:
    """Write ``results.json``, ``results.csv`` and ``results.md``, each atomically; returns the table in Markdown."""
    markdown = table(benchmark.agents, benchmark.against)
    agents = {name: _figures(result) for name, result in benchmark.agents.items()}
    write_json(folder / "results.json", {"format": FORMAT, **benchmark._asdict(), "agents": agents})
    paragraphs = [benchmark.title, markdown, *([benchmark.failures] if benchmark.failed else [])]
    for name, text in (("results.csv", as_csv(benchmark.agents)), ("results.md", "\n\n".join(paragraphs) + "\n")):
        with atomic_path(folder / name) as partial:
            partial.write_text(text)
    return markdown


def _figures(result: Result) -> dict[str, Any]:
    """The JSON object of a result; ``_result`` reads it."""
    fields = result._asdict()
    figures = {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in fields.items()}
    return {**figures.pop("scores"), "looking": figures.pop("attention_metrics"), **figures}


def read_results(path: Path) -> Benchmark:
    """Read results of ``write_results``: a ``results.json``, or the one in a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no benchmark results, or those of another version.
    """
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no benchmark results {str(file)!r}; train.benchmark writes them to its run directory")
    try:
        data = json.loads(file.read_text())
        version = data.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} holds no benchmark results ({error}); run train.benchmark again") from error
    if version != FORMAT:
        actual = "names no format" if version is None else f"has the format {version!r}"
        advice = "run train.benchmark again to write it anew"
        raise ValueError(f"{str(file)!r} {actual}, and this version reads {FORMAT!r}; {advice}")
    try:
        agents = {name: _result(figures) for name, figures in data["agents"].items()}
        settings = {name: data[name] for name in ("env", "split", "options", "against")}
        benchmark = Benchmark(**settings, agents=agents, failed=data.get("failed", {}))
        decoders, errors = benchmark.options["decoders"], benchmark.failed.values()
        names = [benchmark.env, benchmark.split, benchmark.against or "", *decoders, *errors]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"not all of {names} are words")
        return benchmark
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error!r}); run train.benchmark again to write it anew") from error


def _result(figures: dict[str, Any]) -> Result:
    scores = {name: figures[name] for name in Scores._fields}
    attention, coco, above = figures["looking"], figures["coco"], figures["above"] or {}
    metrics = figures.get("metrics", figures.get("measures", {}))  # older results have measures, or none
    if len(scores["bleu"]) != 4 or not isinstance(figures["seeds"], list):
        raise ValueError("expected four BLEU scores and a list of seeds")
    values = [*scores["bleu"], *(value for name, value in scores.items() if name != "bleu"), attention["locations"]]
    values += [value for value in (*attention.values(), *metrics.values(), *coco.values()) if value is not None]
    for value in (*values, *figures["bleu4"].values(), *figures["iqm"].values(), *above.values()):
        if not isinstance(value, float | int):
            raise ValueError(f"{value!r} is not a figure")
    bleu4, iqm = (Interval(**figures[name]) for name in ("bleu4", "iqm"))
    difference, seeds = Interval(**above) if above else None, figures["seeds"]
    return Result(Scores(**scores), AttentionMetrics(**attention), bleu4, iqm, difference, metrics, coco, seeds)


def earlier_results(path: Path, env: str, split: str, images: int, decoders: Sequence[str]) -> dict[str, Result]:
    """Results of an earlier benchmark for the same table, with its folder in their names and without ``above``.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are of another version, environment, split, decoder or number of images.
    """
    earlier = read_results(path)
    if (earlier.env, earlier.split, earlier.images) != (env, split, images):
        raise ValueError(
            f"the results in {str(path)!r} are of {earlier.env}, {earlier.split}, {earlier.images} images, and these "
            f"will be of {env}, {split}, {images} images; only scores of the same images stand beside each other"
        )
    if earlier.options["decoders"] != list(decoders):
        raise ValueError(
            f"the results in {str(path)!r} are of {' '.join(earlier.options['decoders'])} words, and these will be of "
            f"{' '.join(decoders)} words; pass --decode or --decoders as they were"
        )
    folder = path if path.is_dir() else path.parent
    return {f"{name} ({folder})": result._replace(above=None) for name, result in earlier.agents.items()}
