"""The main job: every agent on one environment, one table, one picture of where they look."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tyro
from PIL import Image
from tqdm import tqdm

from agents.loading import shipped_agents
from glimpse_env.decoding import Captioned, Decoding
from glimpse_env.files import atomic_path
from glimpse_env.registration import IDS
from train import evaluate
from train.caption import picture, save_picture, stack
from train.coco import check_coco, coco_scores
from train.common import markdown_table, prepare, write_json
from train.decoding import DecodingOptions
from train.looking import Looking
from train.scoring import Scores

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
    """Agents to compare; by default all that are shipped for the environment and its controls."""
    decoders: list[Decoding] = field(default_factory=list)
    """Ways of decoding to compare; by default the one of --decode."""
    coco: bool = False
    """Also METEOR and CIDEr-D; needs glimpse-env[coco] and Java."""
    run_dir: Path = Path("runs/benchmark")
    """Folder for results.json, results.md and glimpses.png."""


def table(
    results: dict[str, Scores],
    coco: dict[str, dict[str, float]] | None = None,
    looking: dict[str, Looking] | None = None,
) -> str:
    """Scores as a Markdown table, the best BLEU-4 first.

    Args:
        results: scores by name.
        coco: by name what ``coco_scores`` says, for two more columns.
        looking: by name how the agent looked, for one more column where there is ground truth.
    """
    grounding = {name: one.grounding for name, one in (looking or {}).items() if one.grounding is not None}
    head = ["agent", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", *(["METEOR", "CIDEr-D"] if coco else [])]
    rows = []
    for name, scores in sorted(results.items(), key=lambda item: -item[1].bleu[3]):
        more = [coco[name]["meteor"], coco[name]["cider_d"]] if coco else []
        figures = [f"{value:.3f}" for value in (*scores.bleu, *more)]
        rows.append([name, *figures, f"{scores.length_ratio:.2f}", f"{scores.bad_endings:.3f}"])
        if grounding:
            rows[-1].append(f"{grounding[name]:.3f}" if name in grounding else "–")
    head += ["length", "bad endings", *(["grounding"] if grounding else [])]
    return markdown_table(head, rows)


def glimpses(options: Options, captions: dict[str, list[Captioned]], agents: dict[str, str]) -> Image.Image | None:
    """A few images with the glimpses of each pictured agent, or None when there is none.

    Args:
        options: of the command.
        captions: by the name of the run.
        agents: who played each run.
    """
    drawn = [name for name, agent in agents.items() if agent in PICTURED]
    if not drawn:
        return None
    env: Any = evaluate.make_env(evaluation(options, agents[drawn[0]], options.decode))
    pictures = []
    for scene in range(min(SCENES, len(captions[drawn[0]]))):
        for name in drawn:
            made = captions[name][scene]
            pictures.append(picture(env.dataset.image(made.row), made, env.captioner, f"{name} attention"))
    return stack(pictures)


def evaluation(options: Options, agent: str, decode: Decoding) -> evaluate.Options:
    """The options under which one agent is scored."""
    shared = {one.name: getattr(options, one.name) for one in fields(DecodingOptions)}
    return evaluate.Options(env=options.env, split=options.split, agent=agent, **{**shared, "decode": decode})


def main(options: Options) -> None:
    """Score every agent, print the table, draw the glimpses, and say what to try next."""
    prepare(options)
    if options.env not in IDS:
        raise ValueError(f"unknown environment {options.env!r}; expected one of {', '.join(IDS)}")
    if options.coco:
        check_coco()
    began = time.monotonic()
    results: dict[str, Scores] = {}
    captions: dict[str, list[Captioned]] = {}
    coco: dict[str, dict[str, float]] = {}
    looking: dict[str, Looking] = {}
    played: dict[str, str] = {}
    decoders = options.decoders or [options.decode]
    runs = [(agent, decode) for agent in options.agents or shipped_agents(IDS[options.env]) for decode in decoders]
    for agent, decode in tqdm(runs, desc="agents", unit="agent"):
        name = agent if len(decoders) == 1 else f"{agent}, {decode}"
        played[name] = agent
        made = evaluate.evaluate(evaluation(options, agent, decode))
        results[name], captions[name], looking[name] = made.scores, made.captions, made.looking
        if options.coco:
            coco[name] = coco_scores([one.words for one in made.captions], made.references)
    written = table(results, coco, looking)
    images = next(iter(results.values())).num_images
    title = f"{options.env}, {options.split}, {images} images, {' '.join(decoders)} words"
    print(f"\n{title}\n\n{written}\n")
    figures = {
        name: {**one._asdict(), **coco.get(name, {}), "looking": looking[name]._asdict()}
        for name, one in results.items()
    }
    said = {one.name: getattr(options, one.name) for one in fields(DecodingOptions)} | {"decoders": decoders}
    write_json(
        options.run_dir / "results.json",
        {"env": options.env, "split": options.split, "options": said, "agents": figures},
    )
    with atomic_path(options.run_dir / "results.md") as partial:
        partial.write_text(f"{title}\n\n{written}\n")
    sheet = glimpses(options, captions, played)
    if sheet is not None:
        save_picture(sheet, options.run_dir / "glimpses.png")
        print(f"Where they looked: {options.run_dir / 'glimpses.png'}")
    print(f"Done in {time.monotonic() - began:.0f} s. Caption your own photographs with:")
    print("  .venv/bin/python -m train.caption PHOTO.jpg --captioner flickr8k --out glimpses.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
