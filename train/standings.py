"""What the shipped agents earn on the first images of a split, for ``python -m glimpse_env.play`` to compare with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from agents.loading import find_agent, shipped_agents
from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.metrics.rewards import BleuReward
from glimpse_env.play.leaderboard import standings_file
from glimpse_env.registration import IDS
from train.common.cli import run_command
from train.common.options import Compute, prepare
from train.evaluate import evaluation as evaluate
from train.evaluate.decoding_options import DecodingOptions

LEFT_OUT = ("uniform", "raster", "shuffled")  # nobody plays like these
IMAGES = 200


@dataclass
class Options(Compute):
    """Write what the shipped agents earn."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    split: str = "test"
    """train, val or test."""
    out: Path | None = None
    """File; by default the one that comes with the package."""


def rewards(options: Options, agent: str) -> dict[str, float]:
    """By image the sentence BLEU of an agent's greedy captions, as the environment pays it, rounded."""
    asked = evaluate.Options(
        env=options.env, split=options.split, agent=agent, data_root=options.data_root, device=options.device
    )
    env = evaluate.make_env(asked)
    player = find_agent(agent, IDS[options.env]).make(env, options.seed)
    rows = range(len(env.dataset))[: options.limit or IMAGES]
    decoding = DecodingOptions(seed=options.seed, device=options.device)
    made = decoding.make_captions(env.captioner, env.features, player, rows, env.task.max_caption_length, agent)
    worth = BleuReward()
    earned = {}
    for one in made:
        reward = worth(env.dataset.references(one.row), one.words, one.ended)
        earned[env.dataset.image_id(one.row)] = round(reward, 3)
    return earned


def main(options: Options) -> None:
    """Play and write."""
    prepare(options)
    dataset = IDS[options.env]
    names = [name for name in shipped_agents(dataset) if name not in LEFT_OUT]
    earned = {name: rewards(options, name) for name in names}
    package = Path(__file__).parents[1] / "glimpse_env" / "assets"
    path = options.out or package / standings_file(dataset, options.split)
    told = {
        "command": f"python -m train.standings --env {options.env} --split {options.split}",
        "images": [*earned[names[0]]],
        "rewards": {name: [*values.values()] for name, values in earned.items()},
    }
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(told) + "\n")
    for name, values in earned.items():
        print(f"{name}: {sum(values.values()) / len(values):.3f}")
    print(f"{path}: {len(told['images'])} images")


if __name__ == "__main__":
    run_command(main, Options)
