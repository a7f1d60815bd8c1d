"""The main job: every agent on one environment, one table, one picture of where they look."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from agents.loading import shipped_agents
from glimpse_env.decoding import Captioned, Decoding
from glimpse_env.files import atomic_path
from glimpse_env.registration import IDS
from train import evaluate
from train.album import picture, save_picture, stack
from train.coco import check_coco, coco_scores
from train.common import markdown_table, prepare, write_json
from train.decoding import DecodingOptions
from train.looking import Looking
from train.scoring import Interval, Scores, bootstrap, interval
from train.seeds import mean_figures, mean_values, seeds_of

PICTURED = ("hard", "soft")  # agents whose glimpses are drawn
SCENES = 3  # images drawn for each


@dataclass
class Options(DecodingOptions):
    """Compare agents, and ways of decoding."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    split: str = "test"
    """train, val or test."""
    agents: list[str] = field(default_factory=list)
    """Agents to compare; by default all that are shipped for the environment and its controls. A quoted pattern of run
    directories, such as "runs/shapes-ppo-?", is one agent trained with several seeds: their mean is shown."""
    against: str | None = None
    """One of the agents; by how much the others are above it is a column of its own (paired bootstrap)."""
    decoders: list[Decoding] = field(default_factory=list)
    """Ways of decoding to compare; by default the one of --decode."""
    coco: bool = False
    """Also METEOR and CIDEr-D; needs glimpse-env[coco] and Java."""
    run_dir: Path = Path("runs/benchmark")
    """Folder for results.json, results.md and glimpses.png."""


class Result(NamedTuple):
    """What the runs of one agent, one a seed, come to.

    Attributes:
        scores: mean over seeds.
        looking: how it looked, mean over seeds.
        bleu4: BLEU-4 with its interval over images and seeds.
        above: how far it is above another agent, if one was named.
        coco: by name what ``coco_scores`` says, mean over seeds; empty when nobody asked.
        seeds: the agents that were scored.
    """

    scores: Scores
    looking: Looking
    bleu4: Interval
    above: Interval | None
    coco: dict[str, float]
    seeds: list[str]


def table(results: dict[str, Result], against: str | None = None) -> str:
    """Scores as a Markdown table, the best BLEU-4 first.

    Columns that nobody has a figure for are left out.

    Args:
        results: by name.
        against: the agent that ``Result.above`` speaks of.
    """
    head = ["agent", "seeds", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "95 %", f"above {against}"]
    head += ["METEOR", "CIDEr-D", "length", "bad endings", "grounding", "empty"]
    rows = []
    for name, one in sorted(results.items(), key=lambda item: -item[1].scores.bleu[3]):
        above = None if one.above is None else f"{one.above.value:+.4f} [{one.above.low:+.4f}, {one.above.high:+.4f}]"
        cells: list[Any] = [name, str(len(one.seeds)), *one.scores.bleu]
        cells += [f"{one.bleu4.low:.3f}–{one.bleu4.high:.3f}", above, one.coco.get("meteor"), one.coco.get("cider_d")]
        cells += [f"{one.scores.length_ratio:.2f}", one.scores.bad_endings, one.looking.grounding, one.looking.empty]
        rows.append(cells)
    kept = [place for place in range(len(head)) if any(row[place] is not None for row in rows)]
    shown = [[_cell(row[place]) for place in kept] for row in rows]
    return markdown_table([head[place] for place in kept], shown)


def _cell(value: str | float | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.3f}"


def glimpses(options: Options, agents: dict[str, str], captions: dict[str, list[Captioned]]) -> Image.Image | None:
    """A few images with the glimpses of each pictured agent, or None when there is none.

    Args:
        options: of the command.
        agents: who played, by the name of the row.
        captions: what came of it, likewise.
    """
    drawn = [name for name, agent in agents.items() if agent in PICTURED]
    if not drawn:
        return None
    env: Any = evaluate.make_env(evaluation(options, agents[drawn[0]], options.decode))
    pictures = []
    for scene in range(min(SCENES, len(captions[drawn[0]]))):
        for name in drawn:
            made = captions[name][scene]
            grid = env.captioner.encoder.config.grid
            pictures.append(picture(env.dataset.image(made.row), made, grid, f"{name} attention"))
    return stack(pictures)


def evaluation(options: Options, agent: str, decode: Decoding) -> evaluate.Options:
    """The options under which one agent is scored."""
    shared = {one.name: getattr(options, one.name) for one in fields(DecodingOptions)}
    return evaluate.Options(env=options.env, split=options.split, agent=agent, **{**shared, "decode": decode})


Key = tuple[str, Decoding]  # an agent and how its words were found


def gather(key: Key, made: dict[Key, list[evaluate.Evaluation]], seeds: list[str], options: Options) -> Result:
    """What the runs of one agent come to, beside those of the agent to compare with, under the same decoder."""
    references = made[key][0].references
    other = (options.against, key[1])

    def said(by: Any) -> list[list[list[str]]]:
        return [[one.words for one in run.captions] for run in made[by]]

    def resampled(against: list[list[list[str]]]) -> Interval:
        return interval(bootstrap(said(key), references, np.random.default_rng(options.seed), against=against))

    return Result(
        scores=mean_figures([run.scores for run in made[key]]),
        looking=mean_figures([run.looking for run in made[key]]),
        bleu4=resampled([]),
        above=resampled(said(other)) if other in made and other != key else None,
        coco=mean_values([coco_scores(run, references) for run in said(key)]) if options.coco else {},
        seeds=seeds,
    )


def figures(result: Result) -> dict[str, Any]:
    """A result as results.json holds it."""
    return {
        **result.scores._asdict(),
        **result.coco,
        "looking": result.looking._asdict(),
        "bleu4": result.bleu4._asdict(),
        "above": None if result.above is None else result.above._asdict(),
        "seeds": result.seeds,
    }


def main(options: Options) -> None:
    """Score every agent, print the table, draw the glimpses, and say what to try next.

    Raises:
        ValueError: there is no such environment, or the agent to compare with is not among the agents.
        FileNotFoundError: an agent's weights, or the runs of a pattern, are not there.
    """
    prepare(options)
    if options.env not in IDS:
        raise ValueError(f"unknown environment {options.env!r}; expected one of {', '.join(IDS)}")
    if options.coco:
        check_coco()
    began = time.monotonic()
    decoders = options.decoders or [options.decode]
    agents = {agent: seeds_of(agent) for agent in options.agents or shipped_agents(IDS[options.env])}
    if options.against is not None and options.against not in agents:
        raise ValueError(f"--against {options.against!r} is none of the agents; add it to --agents {' '.join(agents)}")
    made: dict[Key, list[evaluate.Evaluation]] = {}
    runs = [(agent, decode, seed) for agent, seeds in agents.items() for decode in decoders for seed in seeds]
    for agent, decode, seed in tqdm(runs, desc="agents", unit="run"):
        made.setdefault((agent, decode), []).append(evaluate.evaluate(evaluation(options, seed, decode)))
    names = {key: key[0] if len(decoders) == 1 else ", ".join(key) for key in made}
    results = {name: gather(key, made, agents[key[0]], options) for key, name in names.items()}
    written = table(results, options.against)
    images = next(iter(results.values())).scores.num_images
    title = f"{options.env}, {options.split}, {images} images, {' '.join(decoders)} words"
    print(f"\n{title}\n\n{written}\n")
    said = {one.name: getattr(options, one.name) for one in fields(DecodingOptions)} | {"decoders": decoders}
    write_json(
        options.run_dir / "results.json",
        {
            "env": options.env,
            "split": options.split,
            "options": said,
            "against": options.against,
            "agents": {name: figures(one) for name, one in results.items()},
        },
    )
    with atomic_path(options.run_dir / "results.md") as partial:
        partial.write_text(f"{title}\n\n{written}\n")
    sheet = glimpses(options, {names[key]: key[0] for key in made}, {names[key]: made[key][0].captions for key in made})
    if sheet is not None:
        save_picture(sheet, options.run_dir / "glimpses.png")
        print(f"Where they looked: {options.run_dir / 'glimpses.png'}")
    print(f"Done in {time.monotonic() - began:.0f} s. Caption your own photographs with:")
    print("  .venv/bin/python -m train.caption PHOTO.jpg --captioner flickr8k --out glimpses.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
