"""What a benchmark comes to: the figures of every agent, as a table, as CSV, and as JSON that can be read again.

Knows captions that were made and scored. It does not know who made them, nor how the page shows them.
"""

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
from train.evaluate.attention_metrics import Looking
from train.evaluate.coco import coco_scores
from train.evaluate.evaluation import Evaluation
from train.evaluate.scoring import Interval, Scores, bootstrap, bootstrap_iqm, interval, sentence_scores

FORMAT = "glimpse-benchmark-2"  # of results.json; raise it when a figure's name or meaning changes


class Result(NamedTuple):
    """What the runs of one agent, one a seed, come to.

    Attributes:
        scores: mean over seeds.
        looking: how it looked, mean over seeds.
        bleu4: BLEU-4 with its interval over images and seeds.
        iqm: interquartile mean of sentence BLEU-4 over seeds and images together, with its interval.
        above: how far BLEU-4 is above another agent's, if one was named.
        coco: by name what ``coco_scores`` says, mean over seeds; empty when nobody asked.
        seeds: the agents that were scored.
    """

    scores: Scores
    looking: Looking
    bleu4: Interval
    iqm: Interval
    above: Interval | None
    coco: dict[str, float]
    seeds: list[str]


class Benchmark(NamedTuple):
    """A comparison as ``results.json`` holds it.

    Attributes:
        env: id of the environment.
        split: train, val or test.
        options: how the captions were made.
        against: the agent that ``Result.above`` speaks of.
        agents: results by name.
        failed: by name the error of those that could not be scored.
    """

    env: str
    split: str
    options: dict[str, Any]
    against: str | None
    agents: dict[str, Result]
    failed: dict[str, str]

    @property
    def images(self) -> int:
        """Images that were captioned."""
        return next((one.scores.num_images for one in self.agents.values()), 0)

    @property
    def title(self) -> str:
        """What was compared, in a line."""
        return f"{self.env}, {self.split}, {self.images:,} images, {' '.join(self.options['decoders'])} words"

    @property
    def failures(self) -> str:
        """Who could not be scored and why, in a line; empty when all were."""
        told = "; ".join(f"{name} ({error})" for name, error in self.failed.items())
        return f"Failed, and not in the table: {told}" if told else ""


def summarise(
    runs: Sequence[Evaluation], others: Sequence[Evaluation], seeds: list[str], seed: int = 0, coco: bool = False
) -> Result:
    """What the runs of one agent come to.

    Args:
        runs: one a seed, of the same images.
        others: the runs of the agent to compare with; none to compare with nobody.
        seeds: what was scored in each run.
        seed: of the resamples.
        coco: whether METEOR and CIDEr-D are wanted, too.
    """
    references = runs[0].references
    said = [[one.words for one in run.captions] for run in runs]
    theirs = [[one.words for one in run.captions] for run in others]
    each = np.array([sentence_scores(run.captions, references) for run in runs])  # (R, N)

    def resampled(against: list[list[list[str]]]) -> Interval:
        return interval(bootstrap(said, references, np.random.default_rng(seed), against=against))

    return Result(
        scores=mean_figures([run.scores for run in runs])._replace(num_images=len(references)),
        looking=mean_figures([run.looking for run in runs]),
        bleu4=resampled([]),
        iqm=interval(bootstrap_iqm(each, np.random.default_rng(seed))),
        above=resampled(theirs) if theirs else None,
        coco=mean_values([coco_scores(run, references) for run in said]) if coco else {},
        seeds=seeds,
    )


def ranked(results: dict[str, Result]) -> list[tuple[str, Result]]:
    """Results, the best BLEU-4 first."""
    return sorted(results.items(), key=lambda item: -item[1].scores.bleu[3])


def columns(results: dict[str, Result], against: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Scores as the head and the rows of a table, the best BLEU-4 first.

    Columns that nobody has a figure for are left out.

    Args:
        results: by name.
        against: the agent that ``Result.above`` speaks of.
    """
    head = ["agent", "seeds", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "95 %", "IQM", "IQM 95 %", f"above {against}"]
    head += ["METEOR", "CIDEr-D", "length", "bad endings", "grounding", "empty"]
    rows = []
    for name, one in ranked(results):
        above = None if one.above is None else f"{one.above.value:+.4f} [{one.above.low:+.4f}, {one.above.high:+.4f}]"
        cells: list[Any] = [name, str(len(one.seeds)), *one.scores.bleu, _range(one.bleu4)]
        cells += [one.iqm.value, _range(one.iqm), above, one.coco.get("meteor"), one.coco.get("cider_d")]
        cells += [f"{one.scores.length_ratio:.2f}", one.scores.bad_endings, one.looking.grounding, one.looking.empty]
        rows.append(cells)
    kept = [place for place in range(len(head)) if any(row[place] is not None for row in rows)]
    return [head[place] for place in kept], [[_cell(row[place]) for place in kept] for row in rows]


def table(results: dict[str, Result], against: str | None = None) -> str:
    """``columns`` as Markdown."""
    return markdown_table(*columns(results, against))


def _range(found: Interval) -> str:
    return f"{found.low:.3f}–{found.high:.3f}"


def _cell(value: str | float | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.3f}"


def as_csv(results: dict[str, Result]) -> str:
    """Every figure at full precision as CSV, a line an agent, the best BLEU-4 first; what is unknown is left empty."""
    rows = []
    for name, one in ranked(results):
        row: dict[str, Any] = {"agent": name, "seeds": len(one.seeds), "images": one.scores.num_images}
        row |= {f"bleu{order}": value for order, value in enumerate(one.scores.bleu, 1)}
        for field, found in (("bleu4", one.bleu4), ("iqm", one.iqm), ("above", one.above)):
            parts = (None, None, None) if found is None else found
            row |= dict(zip((field, f"{field}_low", f"{field}_high"), parts, strict=True))
        rest = {name: value for name, value in one.scores._asdict().items() if name not in ("bleu", "num_images")}
        rows.append(row | rest | one.looking._asdict() | one.coco)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write_results(folder: Path, made: Benchmark) -> str:
    """Write ``results.json``, ``results.csv`` and ``results.md``, each atomically; returns the table in Markdown."""
    written = table(made.agents, made.against)
    agents = {name: _figures(one) for name, one in made.agents.items()}
    write_json(folder / "results.json", {"format": FORMAT, **made._asdict(), "agents": agents})
    paragraphs = [made.title, written, *([made.failures] if made.failed else [])]
    for name, text in (("results.csv", as_csv(made.agents)), ("results.md", "\n\n".join(paragraphs) + "\n")):
        with atomic_path(folder / name) as partial:
            partial.write_text(text)
    return written


def _figures(result: Result) -> dict[str, Any]:
    parts = {"looking": result.looking, "bleu4": result.bleu4, "iqm": result.iqm, "above": result.above}
    return {
        **result.scores._asdict(),
        **{name: None if part is None else part._asdict() for name, part in parts.items()},
        "coco": result.coco,
        "seeds": result.seeds,
    }


def read_results(path: Path) -> Benchmark:
    """Read what ``write_results`` has written.

    Args:
        path: a ``results.json``, or the folder it lies in.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or another version's.
    """
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no benchmark results {str(file)!r}; train.benchmark writes them to its run directory")
    try:
        held = json.loads(file.read_text())
        found = held.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} holds no benchmark results ({error}); run train.benchmark again") from error
    if found != FORMAT:
        was = "names no format" if found is None else f"has the format {found!r}"
        raise ValueError(
            f"{str(file)!r} {was}, and this version reads {FORMAT!r}; run train.benchmark again to write it anew"
        )
    try:
        agents = {name: _result(one) for name, one in held["agents"].items()}
        found = Benchmark(held["env"], held["split"], held["options"], held["against"], agents, held.get("failed", {}))
        names = [found.env, found.split, found.against or "", *found.options["decoders"], *found.failed.values()]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"not all of {names} are words")
        return found
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error!r}); run train.benchmark again to write it anew") from error


def _result(held: dict[str, Any]) -> Result:
    scores = {name: held[name] for name in Scores._fields}
    above = held["above"] or {}
    if len(scores["bleu"]) != 4 or not isinstance(held["seeds"], list):
        raise ValueError("expected four BLEU scores and a list of seeds")
    figures = [
        *scores["bleu"],
        *(value for name, value in scores.items() if name != "bleu"),
        held["looking"]["locations"],
    ]
    unknown = [value for value in (*held["looking"].values(), *held["coco"].values()) if value is not None]
    for figure in (*figures, *unknown, *held["bleu4"].values(), *held["iqm"].values(), *above.values()):
        if not isinstance(figure, float | int):
            raise ValueError(f"{figure!r} is not a figure")
    return Result(
        scores=Scores(**scores),
        looking=Looking(**held["looking"]),
        bleu4=Interval(**held["bleu4"]),
        iqm=Interval(**held["iqm"]),
        above=Interval(**above) if above else None,
        coco=held["coco"],
        seeds=held["seeds"],
    )


def beside(path: Path, env: str, split: str, images: int, decoders: Sequence[str]) -> dict[str, Result]:
    """Results of an earlier benchmark, to stand in the same table: named after it, and compared with nobody.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are of another version, environment, split or way of decoding, or of more or fewer images.
    """
    held = read_results(path)
    if (held.env, held.split, held.images) != (env, split, images):
        raise ValueError(
            f"the results in {str(path)!r} are of {held.env}, {held.split}, {held.images} images, and these will be of "
            f"{env}, {split}, {images} images; only scores of the same images stand beside each other"
        )
    if held.options["decoders"] != list(decoders):
        raise ValueError(
            f"the results in {str(path)!r} are of {' '.join(held.options['decoders'])} words, and these will be of "
            f"{' '.join(decoders)} words; pass --decode or --decoders as they were"
        )
    folder = path if path.is_dir() else path.parent
    return {f"{name} ({folder})": one._replace(above=None) for name, one in held.agents.items()}
