"""The environments' ids, as data.

Knows names and defaults only; nothing is loaded until an environment is made.
"""

from __future__ import annotations

import gymnasium as gym

IDS = {
    "Glimpse/Shapes-v0": "shapes",
    "Glimpse/ShapesLarge-v0": "shapes-large",
    "Glimpse/Flickr8k-v0": "flickr8k",
    "Glimpse/Flickr30k-v0": "flickr30k",
    "Glimpse/Coco-v0": "coco",
    "Glimpse/WebDataset-v0": "webdataset",
}


def register_environments() -> None:
    """Register every id with Gymnasium; again does nothing."""
    for name, dataset in IDS.items():
        if name not in gym.registry:
            gym.register(
                name,
                entry_point="glimpse_env.envs.single:GlimpseEnv",
                vector_entry_point="glimpse_env.envs.vector:GlimpseVectorEnv",
                kwargs={"dataset": dataset},
            )
