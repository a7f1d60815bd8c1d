"""Write the rewards of the shipped agents on the first images of a split, for the leaderboard of glimpse_env.play."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agents.loading import shipped_agents
from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.datasets import world_of
from glimpse_env.metrics.rewards import BleuReward
from glimpse_env.play.leaderboard import standings_file
from train.common.cli import run_command
from train.common.options import CommonOptions, prepare
from train.evaluate.evaluation import Options as EvaluationOptions
from train.evaluate.evaluation import evaluate

EXCLUDED_AGENTS = ("uniform", "raster", "shuffled")  # not in the leaderboard
IMAGES = 200
ASSETS = Path(__file__).parents[1] / "glimpse_env" / "assets"


@dataclass
class Options(CommonOptions):
    """Write what the shipped agents earn."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    split: str = "test"
    """train, val or test."""
    out: Path | None = None
    """File; by default the one that comes with the package."""


def image_rewards(options: Options, agent: str) -> dict[str, float]:
    """Rewards of an agent's greedy captions (sentence BLEU), rounded, by image."""
    shared = {name: getattr(options, name) for name in ("env", "split", "seed", "device", "data_root")}
    evaluation = evaluate(EvaluationOptions(agent=agent, limit=options.limit or IMAGES, **shared))
    reward, images = BleuReward(), zip(evaluation.names, evaluation.references, evaluation.captions, strict=True)
    return {name: round(reward(refs, caption.words, caption.ended), 3) for name, refs, caption in images}


def main(options: Options) -> None:
    """Caption the images with every agent, write the rewards, and print their means."""
    prepare(options)
    dataset = world_of(options.env).name
    names = [name for name in shipped_agents(dataset) if name not in EXCLUDED_AGENTS]
    rewards = {name: image_rewards(options, name) for name in names}
    path = options.out or ASSETS / standings_file(dataset, options.split)
    leaderboard = {
        "command": f"python -m train.standings --env {options.env} --split {options.split}",
        "images": [*rewards[names[0]]],
        "rewards": {name: [*values.values()] for name, values in rewards.items()},
    }
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(leaderboard) + "\n")
    for name, values in rewards.items():
        print(f"{name}: {sum(values.values()) / len(values):.3f}")
    print(f"{path}: {len(leaderboard['images'])} images")


if __name__ == "__main__":
    run_command(main, Options)
