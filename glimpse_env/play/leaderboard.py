"""What the shipped agents earned on an image: numbers that come with the package, so that it needs no agents.

Knows a JSON file. It does not know how its numbers were made: ``python -m train.standings`` does.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple


class Standings(NamedTuple):
    """Rewards of agents on some images of a split, greedy words, each on its own captioner.

    Attributes:
        rewards: by agent, one an image.
        images: ids of the images; rows would not do, for they differ between the layouts of a dataset.
    """

    rewards: dict[str, list[float]]
    images: list[str]

    def of(self, image_id: str) -> dict[str, float]:
        """Reward of each agent on an image; none on an image that was not played."""
        if image_id not in self.images:
            return {}
        place = self.images.index(image_id)
        return {name: earned[place] for name, earned in self.rewards.items()}


def standings_file(dataset: str, split: str) -> str:
    """The name of a file of standings."""
    return f"{dataset}-{split}-standings.json"


def load_standings(dataset: str, split: str) -> Standings:
    """What comes with the package for a split; of no agent and no image where nothing does."""
    file = resources.files("glimpse_env") / "assets" / standings_file(dataset, split)
    held = json.loads(file.read_text()) if file.is_file() else {"rewards": {}, "images": []}
    return Standings(held["rewards"], held["images"])
