"""The spaces of observations and actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from glimpse_env.envs.task import CaptionTask


def observation_space(task: CaptionTask) -> spaces.Dict[Any]:
    """The Dict space of one episode's observations."""
    _, locations, features = task.features.shape
    parts: dict[str, spaces.Space[Any]] = {
        "hidden": spaces.Box(-1.0, 1.0, (task.captioner.decoder.config.hidden_dim,), np.float32),
        "word": spaces.Box(0, len(task.captioner.vocabulary) - 1, (1,), np.int64),
        "glimpses": spaces.Box(0.0, 1.0, (locations,), np.float32),
        "time": spaces.Box(0.0, 1.0, (1,), np.float32),
    }
    if task.observe == "index":
        parts["image"] = spaces.Box(0, len(task.features) - 1, (1,), np.int64)
    else:
        largest = float(np.finfo(np.float16).max)  # the table holds half precision
        parts["features"] = spaces.Box(-largest, largest, (locations, features), np.float32)
    return spaces.Dict(parts)


def action_space(task: CaptionTask) -> spaces.Discrete | spaces.Box:
    """``Discrete(L)`` of hard, ``Box(0, 1, (L,))`` of soft attention."""
    locations = task.features.shape[1]
    return spaces.Discrete(locations) if task.attention == "hard" else spaces.Box(0.0, 1.0, (locations,), np.float32)
