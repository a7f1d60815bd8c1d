"""What an environment's keyword arguments name: a split, its features, the captioner, the reward, the way of speaking.

It puts the parts together once for the single and the vector environment. It does not know Gymnasium.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glimpse_env.datasets import DATASETS, CaptionDataset, longest_caption, make_dataset
from glimpse_env.envs.shared_assets import Stock, _find_stock, _usable
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.rewards import RewardFn, make_reward
from glimpse_env.models.captioner import Captioner, shipped_captioners
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import Method, WordSampling

OBSERVE = ("features", "index", "glimpsed")


@dataclass(frozen=True)
class CaptionTask:
    """Everything episodes share: read-only, so one task may serve many environments.

    Attributes:
        stock: dataset, captioner, features, references and decoder.
        reward: scores captions.
        attention: ``hard`` or ``soft``.
        observe: ``features``, ``index`` or ``glimpsed``.
        shaped: whether rewards are potential-based.
        sampling: how words are chosen.
        max_caption_length: T.
    """

    stock: Stock
    reward: RewardFn
    attention: str
    observe: str
    shaped: bool
    sampling: WordSampling
    max_caption_length: int

    @property
    def dataset(self) -> CaptionDataset:
        """Images and references of the split."""
        return self.stock.dataset

    @property
    def features(self) -> FeatureTable:
        """Annotations of the split, float16 (N, L, D), which ``observe="index"`` speaks of by row."""
        return self.stock.features

    @property
    def captioner(self) -> Captioner:
        """The frozen captioner."""
        return self.stock.captioner

    @property
    def device(self) -> torch.device:
        """Where the decoder runs."""
        return self.stock.decoder.device

    def dynamics(self, num_episodes: int) -> CaptionDynamics:
        """B captions in the making over this task."""
        return CaptionDynamics(
            self.captioner,
            self.features,
            self.stock.references,
            self.reward,
            num_episodes=num_episodes,
            attention=self.attention,
            sampling=self.sampling,
            shaped=self.shaped,
            max_caption_length=self.max_caption_length,
            decoder=self.stock.decoder.speaker(),
            starts=self.stock.starts,
        )


class TaskView:
    """What every environment shows of its task."""

    task: CaptionTask

    @property
    def dataset(self) -> CaptionDataset:
        """Images and references of the split."""
        return self.task.dataset

    @property
    def features(self) -> FeatureTable:
        """Annotations of the split, float16 (N, L, D), which ``observe="index"`` speaks of by row."""
        return self.task.features

    @property
    def captioner(self) -> Captioner:
        """The frozen captioner."""
        return self.task.captioner


def make_task(
    dataset: str,
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
) -> CaptionTask:
    """Put a task together from an environment's keyword arguments; see ``GlimpseEnv`` for their meaning.

    Raises:
        ValueError: an argument has no such value, or the captioner's vocabulary is of another dataset.
        FileNotFoundError: the data or the captioner is not there.
        DataError: a file of the dataset is wrong.
        FileFormatError: the captioner's file is cut off or damaged.
    """
    if observe not in OBSERVE:
        raise ValueError(f"unknown observe {observe!r}; expected one of {', '.join(OBSERVE)}")
    if attention not in ("hard", "soft"):
        raise ValueError(f"unknown attention {attention!r}; expected 'hard' or 'soft'")
    if not isinstance(shaped, (bool, np.bool_)):
        raise ValueError(f"shaped must be True or False, got {shaped!r}")
    sampling = WordSampling(decoding, temperature, top_k, top_p)
    made_reward = make_reward(reward, lambda: make_dataset(dataset, "train", data_root))
    _check_captioner_named(dataset, captioner)
    images = make_dataset(dataset, split, data_root)
    stock = _find_stock(images, data_root, dataset if captioner is None else captioner, _usable(device))
    longest = longest_caption(dataset) if max_caption_length is None else max_caption_length
    return CaptionTask(stock, made_reward, attention, observe, shaped, sampling, longest)


def _check_captioner_named(dataset: str, captioner: str | Path | Captioner | None) -> None:
    """Said before the data is looked for: without a captioner the data would be of no use."""
    if captioner is None and dataset in DATASETS and dataset not in shipped_captioners():
        raise ValueError(
            f"no captioner is shipped for {dataset}; train one with `python -m train.captioner --dataset {dataset}` "
            "and pass its file as captioner="
        )
