"""Scoring of agents one after another, with results and report of those that have been scored so far."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from agents.loading import ASSETS
from glimpse_env.datasets import world_of
from glimpse_env.rollout.decode import Decoding
from train.benchmark.learning_curves import load_curves, read_curves
from train.benchmark.options import Options
from train.benchmark.report import Report, write_report
from train.benchmark.results import Benchmark, Result, ranked, summarise, write_results
from train.caption.gallery import draw_glimpses, stack
from train.evaluate.decoding_options import DecodingOptions
from train.evaluate.evaluation import Evaluation, evaluate
from train.evaluate.evaluation import Options as EvaluationOptions

DRAWN_AGENTS = ("hard", "soft")  # agents whose glimpses are in glimpses.png
DRAWN_IMAGES = 3
SHIPPED_CURVES = ", in the study"  # follows the name of a shipped agent whose curves are those of docs/benchmark.md

Key = tuple[str, Decoding]  # an agent and how its words are decoded


class BenchmarkRun:
    """Scores agents and writes results.json, results.csv and results.md after each of them.

    An agent that raises an exception is left out: its error is in the results, its traceback in errors.txt.

    Args:
        options: of the command.
        dataset: the images.
        earlier: results of another benchmark for the same table, by name.
    """

    def __init__(self, options: Options, dataset: Any, earlier: dict[str, Result]) -> None:
        self.options, self.dataset = options, dataset
        self.decoders = options.decoders or [options.decode]
        self.runs: dict[Key, list[Evaluation]] = {}  # one a seed
        self._seeds: dict[str, list[str]] = {}  # by agent what was scored
        settings = {**_decoding_options(options), "decoders": self.decoders}
        self.benchmark = Benchmark(options.env, options.split, settings, options.against, dict(earlier), {})
        options.run_dir.mkdir(parents=True, exist_ok=True)
        self.errors = options.run_dir / "errors.txt"
        for name in (self.errors.name, "report.html", "glimpses.png"):  # of an earlier benchmark in this folder
            (options.run_dir / name).unlink(missing_ok=True)

    def score(self, agents: dict[str, list[str]]) -> None:
        """Score agents with every decoder; ``agents`` has, by the agent's name, what is evaluated for each seed."""
        order = sorted(agents, key=lambda name: name != self.options.against)  # the others are compared with it
        keys = [(agent, decode) for agent in order for decode in self.decoders]
        with tqdm(total=sum(len(agents[agent]) for agent, _ in keys), desc="agents", unit="run") as bar:
            for key in keys:
                bar.set_postfix_str(self._row_name(key))
                before, seeds = bar.n, agents[key[0]]
                try:
                    runs = self._evaluate(key, seeds, bar)
                except Exception as error:  # noqa: BLE001 (a user's agent may raise anything)
                    self.fail(self._row_name(key), error)
                    bar.update(before + len(seeds) - bar.n)
                else:
                    self.runs[key], self._seeds[key[0]] = runs, seeds
                    self._add_result(key)

    def _evaluate(self, key: Key, seeds: Sequence[str], bar: tqdm) -> list[Evaluation]:
        options, runs = self.options, []
        for number, agent in enumerate(seeds):
            offset = number if len(set(seeds)) < len(seeds) else 0  # of the seed, where an agent is evaluated again
            shared = {**_decoding_options(options), "decode": key[1], "seed": options.seed + offset}
            runs.append(evaluate(EvaluationOptions(env=options.env, split=options.split, agent=agent, **shared)))
            bar.update()
        return runs

    def _add_result(self, key: Key) -> None:
        options, baseline = self.options, (self.options.against or "", key[1])
        baseline_runs = self.runs.get(baseline, []) if baseline != key else []
        result = summarise(self.runs[key], baseline_runs, self._seeds[key[0]], options.seed, options.coco)
        self.benchmark.agents[self._row_name(key)] = result
        self.write()

    def fail(self, name: str, error: Exception) -> None:
        """Record why the table has no row ``name``, and append the traceback to errors.txt."""
        message = self.benchmark.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
        with self.errors.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n{''.join(traceback.format_exception(error))}\n")
        tqdm.write(f"{name} failed and is left out ({message}); its traceback is in {self.errors}", file=sys.stderr)
        self.write()

    def write(self) -> str:
        """Write the results; returns the table in Markdown."""
        return write_results(self.options.run_dir, self.benchmark)

    def _row_name(self, key: Key) -> str:
        return key[0] if len(self.decoders) == 1 else ", ".join(key)

    def draw_glimpses(self) -> Image.Image | None:
        """The first images with the glimpses of hard and soft attention, or None where neither has been scored."""
        drawn = {self._row_name(key): runs[0] for key, runs in self.runs.items() if key[0] in DRAWN_AGENTS}
        captions = zip(*(run.captions[:DRAWN_IMAGES] for run in drawn.values()), strict=True)
        pictures = [
            draw_glimpses(self.dataset.image(caption.row), caption, run.grid, f"{name} attention")
            for captions_of_image in captions
            for caption, (name, run) in zip(captions_of_image, drawn.items(), strict=True)
        ]
        return stack(pictures) if pictures else None

    def write_report(self) -> Path:
        """Write the page of the agents that were scored, at least one; returns its path."""
        first = {self._row_name(key): runs[0] for key, runs in self.runs.items()}
        evaluations = {name: first[name] for name, _ in ranked(self.benchmark.agents) if name in first}
        shipped = {
            f"{agent}{SHIPPED_CURVES}": curves
            for agent, curves in load_curves(ASSETS / f"{world_of(self.options.env).name}-curves.csv").items()
            if self._seeds.get(agent) == [agent]
        }
        report = Report(self.benchmark, shipped | read_curves(self._seeds), evaluations, self.dataset.image)
        return write_report(self.options.run_dir / "report.html", report)


def _decoding_options(options: Options) -> dict[str, Any]:
    return {option.name: getattr(options, option.name) for option in fields(DecodingOptions)}
