"""The main job: every agent on one environment, one table, one picture of where they look."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from PIL import Image
from tqdm import tqdm

from agents.loading import AGENT_NAMES
from glimpse_env.captioner import shipped_captioners
from glimpse_env.files import atomic_path
from glimpse_env.registration import IDS
from train import evaluate
from train.caption import picture, save_picture, stack
from train.common import Compute, prepare, write_json
from train.scoring import Captioned, Scores

PICTURED = ("hard", "soft")  # agents whose glimpses are drawn
SCENES = 3  # images drawn for each


@dataclass
class Options(Compute):
    """Compare agents."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    split: str = "test"
    """train, val or test."""
    agents: list[str] = field(default_factory=list)
    """Agents to compare; by default all that are shipped for the environment and its controls."""
    run_dir: Path = Path("runs/benchmark")
    """Folder for results.json, results.md and glimpses.png."""


def default_agents(dataset: str) -> list[str]:
    """The agents that can play on a dataset as shipped: the oracle needs Shapes, no-attention its own captioner."""
    missing = set() if f"{dataset}-no-attention" in shipped_captioners() else {"no-attention"}
    if dataset != "shapes":
        missing.add("oracle")
    return [name for name in AGENT_NAMES if name not in missing]


def table(results: dict[str, Scores]) -> str:
    """Scores as a Markdown table, the best BLEU-4 first."""
    head = ["agent", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "length", "bad endings"]
    rows = [
        [name, *(f"{value:.3f}" for value in scores.bleu), f"{scores.length_ratio:.2f}", f"{scores.bad_endings:.3f}"]
        for name, scores in sorted(results.items(), key=lambda item: -item[1].bleu[3])
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def glimpses(options: Options, captions: dict[str, list[Captioned]]) -> Image.Image | None:
    """A few images with the glimpses of each pictured agent, or None when there is none."""
    drawn = [name for name in PICTURED if name in captions]
    if not drawn:
        return None
    env: Any = evaluate.make_env(evaluation(options, drawn[0]))
    pictures = []
    for scene in range(min(SCENES, len(captions[drawn[0]]))):
        for name in drawn:
            made = captions[name][scene]
            pictures.append(picture(env.dataset.image(made.row), made, env.captioner, f"{name} attention"))
    return stack(pictures)


def evaluation(options: Options, agent: str) -> evaluate.Options:
    """The options under which one agent is scored."""
    shared = {name: getattr(options, name) for name in ("seed", "device", "threads", "limit", "data_root")}
    return evaluate.Options(env=options.env, split=options.split, agent=agent, **shared)


def main(options: Options) -> None:
    """Score every agent, print the table, draw the glimpses, and say what to try next."""
    prepare(options)
    if options.env not in IDS:
        raise ValueError(f"unknown environment {options.env!r}; expected one of {', '.join(IDS)}")
    began = time.monotonic()
    results: dict[str, Scores] = {}
    captions: dict[str, list[Captioned]] = {}
    for name in tqdm(options.agents or default_agents(IDS[options.env]), desc="agents", unit="agent"):
        results[name], captions[name] = evaluate.evaluate(evaluation(options, name))
    written = table(results)
    images = next(iter(results.values())).num_images
    title = f"{options.env}, {options.split}, {images} images, greedy words"
    print(f"\n{title}\n\n{written}\n")
    write_json(
        options.run_dir / "results.json",
        {"env": options.env, "split": options.split, "agents": {name: one._asdict() for name, one in results.items()}},
    )
    with atomic_path(options.run_dir / "results.md") as partial:
        partial.write_text(f"{title}\n\n{written}\n")
    sheet = glimpses(options, captions)
    if sheet is not None:
        save_picture(sheet, options.run_dir / "glimpses.png")
        print(f"Where they looked: {options.run_dir / 'glimpses.png'}")
    print(f"Done in {time.monotonic() - began:.0f} s. Caption your own photographs with:")
    print("  .venv/bin/python -m train.caption PHOTO.jpg --captioner flickr8k --out glimpses.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
