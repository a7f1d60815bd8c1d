"""The spaces of observations and actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from glimpse_env.envs.task import CaptionTask


def observation_space(task: CaptionTask) -> spaces.Dict[Any]:
    """The Dict space of one episode's observations."""
    features, captioner = task.assets.features, task.assets.captioner
    num_images, num_locations, feature_dim = features.shape
    entries: dict[str, spaces.Space[Any]] = {
        "hidden": spaces.Box(-1.0, 1.0, (captioner.decoder.config.hidden_dim,), np.float32),
        "word": spaces.Box(0, len(captioner.vocabulary) - 1, (1,), np.int64),
        "glimpses": spaces.Box(0.0, 1.0, (num_locations,), np.float32),
        "time": spaces.Box(0.0, 1.0, (1,), np.float32),
    }
    if task.observe == "index":
        entries["image"] = spaces.Box(0, num_images - 1, (1,), np.int64)
    else:
        largest = float(np.finfo(np.float16).max)  # the table holds half precision
        entries["features"] = spaces.Box(-largest, largest, (num_locations, feature_dim), np.float32)
    return spaces.Dict(entries)


def action_space(task: CaptionTask) -> spaces.Discrete | spaces.Box:
    """``Discrete(L)`` for hard, ``Box(0, 1, (L,))`` for soft attention."""
    num_locations = task.assets.features.shape[1]
    if task.attention == "hard":
        return spaces.Discrete(num_locations)
    return spaces.Box(0.0, 1.0, (num_locations,), np.float32)
