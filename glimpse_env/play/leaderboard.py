"""Rewards of the shipped agents on some images, from a JSON file that ``python -m train.standings`` writes."""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple


class Leaderboard(NamedTuple):
    """Rewards of agents on some images of a split, with greedy words, each agent on its own captioner.

    Attributes:
        rewards: by agent, one per image.
        images: ids of the images; rows would not do, because they differ between the layouts of a dataset.
    """

    rewards: dict[str, list[float]]
    images: list[str]

    def of(self, image_id: str) -> dict[str, float]:
        """Reward of each agent on an image; empty for an image that no agent captioned."""
        if image_id not in self.images:
            return {}
        index = self.images.index(image_id)
        return {name: rewards[index] for name, rewards in self.rewards.items()}


def standings_file(dataset: str, split: str) -> str:
    """File name of a leaderboard."""
    return f"{dataset}-{split}-standings.json"


def load_leaderboard(dataset: str, split: str) -> Leaderboard:
    """The leaderboard that the package ships for a split; empty where it ships none."""
    file = resources.files("glimpse_env") / "assets" / standings_file(dataset, split)
    content = json.loads(file.read_text()) if file.is_file() else {"rewards": {}, "images": []}
    return Leaderboard(content["rewards"], content["images"])
