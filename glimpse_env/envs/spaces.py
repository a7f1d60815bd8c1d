"""The spaces of observations and actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

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
    if features.masks is not None:
        entries["action_mask"] = spaces.MultiBinary(num_locations)
    if task.observe == "index":
        entries["image"] = spaces.Box(0, num_images - 1, (1,), np.int64)
    else:
        largest = float(np.finfo(np.float16).max)  # the table holds half precision
        entries["features"] = spaces.Box(-largest, largest, (num_locations, feature_dim), np.float32)
    return spaces.Dict(entries)


def action_space(task: CaptionTask, num_envs: int | None = None) -> spaces.Space[Any]:
    """``Discrete(L)`` for hard, ``Box(0, 1, (L,))`` for soft attention; batched for ``num_envs`` environments.

    Where images have fewer than L locations, ``sample()`` of hard attention draws among those of the current image.
    Gymnasium's ``SyncVectorEnv`` and ``AsyncVectorEnv`` sample from spaces of their own, which know no image.
    """
    features = task.assets.features
    if task.attention == "soft":
        single: spaces.Space[Any] = spaces.Box(0.0, 1.0, (features.shape[1],), np.float32)
    elif features.masks is None:
        single = spaces.Discrete(features.shape[1])
    else:
        common = np.asarray(features.masks.all(0))
        return LocationSpace(common) if num_envs is None else BatchLocationSpace(common, num_envs)
    return single if num_envs is None else batch_space(single, num_envs)


class _CurrentMasks:
    """The masks that ``sample()`` of a space uses: those of the current images.

    From ``seed`` until the next reset or step they hold the locations that every image has, if there are any: a reset
    may come before the action is taken, as in ``check_env``. Without any, all are allowed before the first reset.

    Attributes:
        masks: int8 (B, L); the environment sets them at every reset and step.
    """

    _common: npt.NDArray[np.int8]
    masks: npt.NDArray[np.int8]

    def seed(self, seed: Any = None) -> Any:
        """Seed the generator; until the next reset or step, samples are of locations that every image has."""
        if self._common.any():
            self.masks = self._common
        return super().seed(seed)  # type: ignore[misc]


class LocationSpace(_CurrentMasks, spaces.Discrete):
    """``Discrete(L)`` whose samples are locations of the current image.

    Args:
        common: the locations that every image has, bool (L,).
    """

    def __init__(self, common: npt.NDArray[np.bool_]) -> None:
        self._common = common[None].astype(np.int8)
        self.masks = self._common if common.any() else np.ones_like(self._common)
        super().__init__(common.size)

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """A random location: of the current image, or as in ``Discrete``."""
        return super().sample(self.masks[0] if mask is None and probability is None else mask, probability)


class BatchLocationSpace(_CurrentMasks, spaces.MultiDiscrete):
    """``MultiDiscrete`` of N locations whose samples are locations of the current images.

    Args:
        common: the locations that every image has, bool (L,).
        num_envs: N.
    """

    def __init__(self, common: npt.NDArray[np.bool_], num_envs: int) -> None:
        self._common = np.tile(common.astype(np.int8), (num_envs, 1))
        self.masks = self._common if common.any() else np.ones_like(self._common)
        super().__init__([common.size] * num_envs)

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """N random locations: of the current images, or as in ``MultiDiscrete``."""
        return super().sample(tuple(self.masks) if mask is None and probability is None else mask, probability)
