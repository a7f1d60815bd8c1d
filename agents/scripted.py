"""Agents that follow a rule and never learn: the controls that learned agents are measured against."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.attention import AdditiveAttention
from agents.attention_agents import HardAttentionAgent
from agents.base import Attention, Observation, StatelessAgent, action_masks, batch_size
from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import GroundedDataset
from glimpse_env.features.table import FeatureTable

Locations = npt.NDArray[np.int64]


def _pick(masks: npt.NDArray[np.bool_], shares: npt.NDArray[np.float64], observation: Observation) -> Locations:
    """The location after a share in [0, 1) of those that each image has, in reading order: int64 () or (B,)."""
    counts = masks.sum(1)
    ranks = np.minimum((shares * counts).astype(np.int64), counts - 1)
    locations = (masks.cumsum(1) > ranks[:, None]).argmax(1)
    return locations[0] if batch_size(observation) is None else locations


class RandomAgent(StatelessAgent):
    """Looks anywhere, uniformly, deterministic or not.

    Args:
        num_locations: L.
        seed: of the generator.
    """

    attention: Attention = "hard"

    def __init__(self, num_locations: int, seed: int = 0) -> None:
        self.num_locations = num_locations
        self.rng = np.random.default_rng(seed)

    def act(self, observation: Observation, deterministic: bool) -> Locations:
        """Uniform locations, int64 () or (B,)."""
        masks = action_masks(observation)
        if masks is None:
            return np.asarray(self.rng.integers(self.num_locations, size=batch_size(observation)))
        return _pick(masks, self.rng.random(len(masks)), observation)


class CenterAgent(StatelessAgent):
    """Always looks at the middle of the grid.

    Args:
        grid: where the locations lie.
    """

    attention: Attention = "hard"

    def __init__(self, grid: LocationGrid) -> None:
        self.location = grid.center

    def act(self, observation: Observation, deterministic: bool) -> Locations:
        """The middle, int64 () or (B,)."""
        size, masks = batch_size(observation), action_masks(observation)
        if masks is not None:
            return _pick(masks, np.full(len(masks), 0.5), observation)
        return np.asarray(self.location) if size is None else np.full(size, self.location)


class RasterScanAgent(StatelessAgent):
    """Reads the grid like a page, spread over the longest caption: word t looks at location ⌊t·L/T⌋.

    Args:
        num_locations: L.
    """

    attention: Attention = "hard"

    def __init__(self, num_locations: int) -> None:
        self.num_locations = num_locations

    def act(self, observation: Observation, deterministic: bool) -> Locations:
        """Locations, int64 () or (B,), that follow from the observation's time t/T alone."""
        time, masks = np.asarray(observation["time"], np.float64)[..., 0], action_masks(observation)
        if masks is not None:
            return _pick(masks, np.atleast_1d(time) + 1e-6, observation)
        locations = np.floor(time * self.num_locations + 1e-4).astype(np.int64)  # t/T is rounded to float32
        return locations.clip(0, self.num_locations - 1)


class UniformAgent(StatelessAgent):
    """Mean pooling as a soft action: equal weight everywhere. On a captioner trained so, it is "no attention".

    Args:
        num_locations: L.
    """

    attention: Attention = "soft"

    def __init__(self, num_locations: int) -> None:
        self.num_locations = num_locations

    def act(self, observation: Observation, deterministic: bool) -> npt.NDArray[np.float32]:
        """Weights 1/L, float32 (L,) or (B, L); 0 for locations that an image does not have."""
        size, masks = batch_size(observation), action_masks(observation)
        if masks is not None:
            weights = (masks / masks.sum(1, keepdims=True)).astype(np.float32)
            return weights[0] if size is None else weights
        shape = (self.num_locations,) if size is None else (size, self.num_locations)
        return np.full(shape, 1 / self.num_locations, np.float32)


class HasRow(Protocol):
    """An unbatched environment, which has the row of the image that its episode shows."""

    @property
    def row(self) -> int:
        """Row of the image."""
        ...


def _image_rows(observation: Observation, env: HasRow | None) -> npt.NDArray[np.int64]:
    """Rows of the images that episodes show, (B,); of one episode without them in its observation, from ``env``."""
    if "image" in observation:
        return np.asarray(observation["image"]).reshape(-1)
    if env is None or batch_size(observation) is not None:
        raise ValueError("the agent must know which image is shown; make the environments with observe='index'")
    return np.array([env.row])


class ShuffledAgent(HardAttentionAgent):
    """Hard attention that is given the next image of the split while the decoder reads the right one.

    It follows the same hidden states as hard attention, but not what the image shows, so what it scores below hard
    attention is the worth of seeing the image.

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
        device: torch.device | str = "cpu",
        seed: int = 0,
        env: HasRow | None = None,
    ) -> None:
        super().__init__(attention, features, device, seed)
        self.num_images = len(features)
        self.env = env

    def alpha(self, observation: Observation) -> Tensor:
        """α, (B, L), of row (k + 1) mod N where row k is shown."""
        next_rows = (_image_rows(observation, self.env) + 1) % self.num_images
        return super().alpha({**observation, "image": next_rows})


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

    attention: Attention = "hard"

    def __init__(self, dataset: Any, vocabulary: Vocabulary, env: HasRow | None = None) -> None:
        if not isinstance(dataset, GroundedDataset):
            raise ValueError(f"the oracle reads ground truth, which {dataset.name} does not have; use another agent")
        self.dataset = dataset
        self.env = env
        self.naming_ids = np.array(vocabulary.encode(dataset.naming_words))

    def predict(
        self,
        observation: Observation,
        state: Any = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[Locations, npt.NDArray[np.int64]]:
        """The location of the object to be named next, int64 () or (B,), and how many have been named."""
        words = np.asarray(observation["word"])[..., 0]
        named = np.zeros(words.shape, np.int64) if state is None else np.array(state)
        if episode_start is not None:
            named = np.where(np.reshape(episode_start, words.shape), 0, named)
        named = named + np.isin(words, self.naming_ids)
        rows = _image_rows(observation, self.env)
        locations = [self._location(int(row), int(count)) for row, count in zip(rows, named.flat, strict=True)]
        return np.array(locations).reshape(words.shape), named

    def _location(self, row: int, named: int) -> int:
        locations = self.dataset.object_locations(row)
        return locations[min(named, len(locations) - 1)]
