"""What the single and the vector environment share: constructor arguments, assets, infos and rendered frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces

from glimpse_env.datasets import CaptionDataset, find_world, make_dataset
from glimpse_env.envs.shared_assets import find_assets
from glimpse_env.envs.spaces import BatchLocationSpace, LocationSpace
from glimpse_env.envs.task import CaptionTask
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.rewards import make_reward
from glimpse_env.models.captioner import Captioner
from glimpse_env.rendering.frames import render_frame, render_text
from glimpse_env.rollout.actions import check_attention
from glimpse_env.rollout.word_sampling import Method, WordSampling

OBSERVE = ("features", "index", "glimpsed")


class GlimpseBase(ABC):
    """Base of ``GlimpseEnv``, which documents the arguments, and of ``GlimpseVectorEnv``.

    Attributes:
        task: what the arguments stand for.

    Raises:
        ValueError: an argument has no such value, or the captioner's vocabulary is of another dataset.
        FileNotFoundError: the data or the captioner does not exist.
        DataError: a file of the dataset is invalid.
        FileFormatError: the captioner's file is cut off or damaged.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array", "ansi"], "render_fps": 4}
    task: CaptionTask
    action_space: spaces.Space[Any]
    _num_episodes = 1

    def __init__(
        self,
        dataset: str = "shapes",
        split: str = "train",
        captioner: str | Path | Captioner | None = None,
        attention: str = "hard",
        observe: str = "features",
        reward: str = "bleu",
        shaped: bool = False,
        decoding: Method = "greedy",
        temperature: float = 1.0,
        top_k: int = 10,
        top_p: float = 0.9,
        max_caption_length: int | None = None,
        data_root: str | Path | None = None,
        device: str | torch.device = "cpu",
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"unknown render_mode {render_mode!r}; expected None, human, rgb_array or ansi")
        if observe not in OBSERVE:
            raise ValueError(f"unknown observe {observe!r}; expected one of {', '.join(OBSERVE)}")
        check_attention(attention)
        if not isinstance(shaped, (bool, np.bool_)):
            raise ValueError(f"shaped must be True or False, got {shaped!r}")
        self.render_mode = render_mode
        sampling = WordSampling(decoding, temperature, top_k, top_p)
        reward_function = make_reward(reward, lambda: make_dataset(dataset, "train", data_root))
        assets = find_assets(dataset, split, captioner, data_root, device)
        length = find_world(dataset).longest if max_caption_length is None else max_caption_length
        self.task = CaptionTask(assets, reward_function, attention, observe, shaped, sampling, length)
        self._make_spaces()
        self._dynamics = self.task.dynamics(self._num_episodes)
        self._started = np.zeros(self._num_episodes, bool)
        self._glimpses: list[list[npt.NDArray[np.float32]]] = [[] for _ in self._started]  # weights (L,), for frames
        self._returns: list[float | None] = [None] * self._num_episodes  # None before the first reward, for frames

    @abstractmethod
    def _make_spaces(self) -> None:
        """Set the spaces, once the task is known."""

    @property
    def dataset(self) -> CaptionDataset:
        """Images and references of the split."""
        return self.task.assets.dataset

    @property
    def features(self) -> FeatureTable:
        """Annotation vectors of the split, float16 (N, L, D); ``observe="index"`` observes a row of them."""
        return self.task.assets.features

    @property
    def captioner(self) -> Captioner:
        """The frozen captioner."""
        return self.task.assets.captioner

    def _begin_episodes(self, slots: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        self._dynamics.begin(slots, rows)
        self._started[slots] = True
        self._allow_current_locations()
        for slot in slots.tolist():
            self._glimpses[slot], self._returns[slot] = [], None

    def _allow_current_locations(self) -> None:
        """Let samples of the action space be locations of the current images."""
        if isinstance(self.action_space, (LocationSpace, BatchLocationSpace)):
            self.action_space.masks = self._dynamics.action_masks()

    def _record(self, weights: npt.NDArray[np.float32] | None, rewards: npt.NDArray[np.float64]) -> None:
        """Keep what frames show of a step: ``weights``, (B, L), None without frames, were read before it."""
        ended = self._dynamics.episodes.ended
        if weights is not None:
            for glimpses, row in zip(self._glimpses, weights, strict=True):
                glimpses.append(row)
        for slot in range(self._num_episodes) if self.task.shaped else ended.nonzero()[0].tolist():
            self._returns[slot] = (self._returns[slot] or 0.0) + float(rewards[slot])

    def _final_infos(self, slots: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Infos of ended episodes, (B',): one entry an episode along the first dimension."""
        episodes, image_id = self._dynamics.episodes, self.dataset.image_id
        infos = {"caption": np.array([" ".join(words) for words in self._dynamics.captions(slots)], object)}
        for name, columns in self._dynamics.metric_columns.items():
            scores = episodes.metrics[slots, columns]  # (B', width)
            infos[name] = scores if scores.shape[1] > 1 else scores[:, 0]
        infos["image_id"] = np.array([image_id(row) for row in episodes.rows[slots].tolist()], object)
        return infos

    def _frame(self, slot: int) -> Any:
        """The picture of an episode: uint8 (H, W, 3), or a string for ``ansi``."""
        episodes, glimpses = self._dynamics.episodes, self._glimpses[slot]
        row, grid = int(episodes.rows[slot]), self.captioner.encoder.grid
        weights = glimpses[-1] if glimpses else None
        words, total = self._dynamics.caption(slot), self._returns[slot]
        if self.render_mode == "ansi":
            ended, name = bool(episodes.ended[slot]), self.dataset.image_id(row)
            return render_text(name, grid, weights=weights, words=words, reward=total, ended=ended)
        trail = [int(past.argmax()) for past in glimpses[:-1]] if self.task.attention == "hard" else []
        return render_frame(self.dataset.image(row), grid, weights=weights, trail=trail, words=words, reward=total)
