"""Agents that follow a rule and never learn: the controls that learned agents are measured against."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from agents.attention import AdditiveAttention
from agents.attention_agents import Device, HardAttentionAgent
from agents.base import AttentionKind, Observation, Starts, StatelessAgent, action_masks, batch_size
from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import GroundedDataset
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.features.table import FeatureTable

Locations = npt.NDArray[np.int64]


def _location_masks(observation: Observation, num_locations: int) -> npt.NDArray[np.bool_]:
    """Which locations the images have, bool (B, L)."""
    masks = action_masks(observation)
    return np.ones((batch_size(observation) or 1, num_locations), bool) if masks is None else masks


class _ScriptedAgent(StatelessAgent):
    """A rule ranks the locations that each image has, in reading order; the agent looks at the one of a rank."""

    attention: AttentionKind = "hard"

    def __init__(self, num_locations: int) -> None:
        self.num_locations = num_locations

    def act(self, observation: Observation, deterministic: bool) -> npt.NDArray[Any]:
        """Locations, int64 (B,)."""
        masks = _location_masks(observation, self.num_locations)
        ranks = self._ranks(masks.sum(1), observation)
        return (masks.cumsum(1) > ranks[:, None]).argmax(1)

    @abstractmethod
    def _ranks(self, counts: Locations, observation: Observation) -> Locations:
        """Ranks (B,), each from 0 to below the number of locations that its image has, ``counts`` (B,)."""


class RandomAgent(_ScriptedAgent):
    """Looks anywhere, uniformly, deterministic or not.

    Args:
        num_locations: L.
        seed: of the generator.
    """

    def __init__(self, num_locations: int, seed: int = 0) -> None:
        super().__init__(num_locations)
        self.rng = np.random.default_rng(seed)

    def _ranks(self, counts: Locations, observation: Observation) -> Locations:
        return self.rng.integers(counts)


class CenterAgent(_ScriptedAgent):
    """Always looks at the middle of the grid; of an image that lacks locations, at the middle one in reading order.

    Args:
        grid: where the locations lie.
    """

    def __init__(self, grid: LocationGrid) -> None:
        super().__init__(len(grid))
        self.location = grid.center

    def _ranks(self, counts: Locations, observation: Observation) -> Locations:
        return np.where(counts == self.num_locations, self.location, counts // 2)


class RasterScanAgent(_ScriptedAgent):
    """Reads the grid like a page, spread over the longest caption: word t looks at location ⌊t·L/T⌋."""

    def _ranks(self, counts: Locations, observation: Observation) -> Locations:
        time = np.asarray(observation["time"], np.float64)[..., 0]  # t/T, rounded to float32
        return np.floor(time * counts + 1e-4).astype(np.int64).clip(0, counts - 1)


class UniformAgent(StatelessAgent):
    """Mean pooling as a soft action: equal weight everywhere. On a captioner trained so, it is "no attention"."""

    attention: AttentionKind = "soft"

    def __init__(self, num_locations: int) -> None:
        self.num_locations = num_locations

    def act(self, observation: Observation, deterministic: bool) -> npt.NDArray[np.float32]:
        """Weights 1/L, float32 (B, L); 0 for locations that an image does not have."""
        masks = _location_masks(observation, self.num_locations)
        return (masks / masks.sum(1, keepdims=True)).astype(np.float32)


def _image_rows(observation: Observation, env: GlimpseEnv | None) -> Locations:
    """Rows of the images that episodes show, (B,); of one episode without them in its observation, from ``env``."""
    if "image" in observation:
        return np.asarray(observation["image"]).reshape(-1)
    if env is None or batch_size(observation) is not None:
        raise ValueError("the agent must know which image is shown; make the environments with observe='index'")
    return np.array([env.row])


class ShuffledAgent(HardAttentionAgent):
    """Hard attention that is given the next image of the split while the decoder reads the right one.

    It reads the true hidden states with the wrong image. The difference between its score and that of hard attention is
    due to the image.

    Args:
        attention: computes the scores.
        features: the environment's table.
        device: where the scores are computed.
        seed: of the generator that draws locations.
        env: where the row is read when the observation does not carry it (``observe`` other than ``index``).
    """

    def __init__(
        self,
        attention: AdditiveAttention,
        features: FeatureTable,
        device: Device = "cpu",
        seed: int = 0,
        env: GlimpseEnv | None = None,
    ) -> None:
        super().__init__(attention, features, device, seed)
        self.num_images, self.env = len(features), env

    def alpha(self, observation: Observation) -> Tensor:
        """α, (B, L), of row (k + 1) mod N where row k is shown."""
        next_rows = (_image_rows(observation, self.env) + 1) % self.num_images
        without_image = {name: values for name, values in observation.items() if name != "features"}
        return super().alpha({**without_image, "image": next_rows})


class OracleAgent:
    """Reads ground truth: looks at the objects in reading order, at each until it is named.

    Its state is the number of objects named so far, (B,).

    Args:
        dataset: a ``GroundedDataset``.
        vocabulary: the captioner's; it tells which words complete a name.
        env: where the row is read when the observation does not carry it (``observe`` other than ``index``).

    Raises:
        ValueError: the dataset has no ground truth.
    """

    attention: AttentionKind = "hard"

    def __init__(self, dataset: Any, vocabulary: Vocabulary, env: GlimpseEnv | None = None) -> None:
        if not isinstance(dataset, GroundedDataset):
            raise ValueError(f"the oracle reads ground truth, which {dataset.name} does not have; use another agent")
        self.dataset, self.env = dataset, env
        self.naming_ids = np.array(vocabulary.encode(dataset.naming_words))

    def predict(
        self, observation: Observation, state: Any = None, episode_start: Starts = None, deterministic: bool = False
    ) -> tuple[Locations, Locations]:
        """The location of the object to be named next, int64 () or (B,), and how many have been named."""
        words = np.asarray(observation["word"])[..., 0]
        named = np.zeros(words.shape, np.int64) if state is None else np.array(state)
        if episode_start is not None:
            named = np.where(np.reshape(episode_start, words.shape), 0, named)
        named = named + np.isin(words, self.naming_ids)
        objects = map(self.dataset.object_locations, _image_rows(observation, self.env).tolist())
        next_objects = [row[min(count, len(row) - 1)] for row, count in zip(objects, named.flat, strict=True)]
        return np.array(next_objects).reshape(words.shape), named
