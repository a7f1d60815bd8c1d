"""What the shipped agents earned on an image: numbers that come with the package, so that it needs no agents.

Knows a JSON file. It does not know how its numbers were made: ``python -m train.standings`` does.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple


class Standings(NamedTuple):
    """Rewards of agents on the first images of a split, greedy words, the dataset's own captioner.

    Attributes:
        rewards: by agent, one an image, in the order of rows.
        images: how many images.
    """

    rewards: dict[str, list[float]]
    images: int

    def of(self, row: int) -> dict[str, float]:
        """Reward of each agent on an image; none on an image that was not played."""
        return {name: earned[row] for name, earned in self.rewards.items()} if row < self.images else {}


def standings_file(dataset: str, split: str) -> str:
    """The name of a file of standings."""
    return f"{dataset}-{split}-standings.json"


def load_standings(dataset: str, split: str) -> Standings:
    """What comes with the package for a split; of no agent and no image where nothing does."""
    file = resources.files("glimpse_env") / "assets" / standings_file(dataset, split)
    rewards: dict[str, list[float]] = json.loads(file.read_text())["rewards"] if file.is_file() else {}
    return Standings(rewards, min(map(len, rewards.values()), default=0))
