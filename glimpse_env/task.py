"""What an environment's keyword arguments name: a split, its features, the captioner, the reward, the way of speaking.

It puts the parts together once for the single and the vector environment. It does not know Gymnasium.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch

from glimpse_env.captioner import Captioner, captioner_path, load_captioner, shipped_captioners, weights_version
from glimpse_env.datasets import DATASETS, CaptionDataset, longest_caption, make_dataset
from glimpse_env.dynamics import CaptionDynamics
from glimpse_env.features import FeatureTable, open_features
from glimpse_env.inference import FrozenDecoder
from glimpse_env.references import SplitReferences, digest
from glimpse_env.reward import RewardFn, make_reward
from glimpse_env.sampling import Method, WordSampling
from glimpse_env.starts import StartTable

OBSERVE = ("features", "index", "glimpsed")
_MIN_COVERAGE = 0.5  # share of reference words that a captioner's vocabulary must hold
_COVERAGE_ROWS = 50


@dataclass(frozen=True, eq=False)
class Stock:
    """What is large, and shared by every environment of a process on the same images, captioner and device.

    Attributes:
        dataset: images and references of one split.
        captioner: the frozen captioner.
        features: annotations of the split.
        references: of the split, in the captioner's words.
        decoder: the captioner's, packed for the device.
        starts: its states before the first word.
        version: of the captioner's weights.
    """

    dataset: CaptionDataset
    captioner: Captioner
    features: FeatureTable
    references: SplitReferences
    decoder: FrozenDecoder
    starts: StartTable
    version: int


_STOCKS: WeakValueDictionary[tuple[object, ...], Stock] = WeakValueDictionary()  # kept while an environment lives


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


def _usable(device: str | torch.device) -> torch.device:
    """A device, having put nothing on it.

    Raises:
        ValueError: torch knows none of that name, or this machine has none.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # the second where CUDA is lacking
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise ValueError("device 'meta' cannot be used: it holds no values")
    return found


def _find_stock(
    images: CaptionDataset, data_root: str | Path | None, captioner: str | Path | Captioner, device: torch.device
) -> Stock:
    """What another environment of this process has already, if nobody has changed its weights, or made now.

    A captioner that was handed over in memory is its owner's to change and is not shared.
    """
    if isinstance(captioner, Captioner):
        return _make_stock(images, captioner, captioner, device)
    path = captioner_path(captioner)
    file = path.stat()
    where = (str(data_root), os.environ.get("GLIMPSE_DATA"), os.environ.get("GLIMPSE_CACHE"))
    told = None if images.procedural else digest(images)
    pictures = (images.name, images.split, images.fingerprint(), told, *where)
    key = (*pictures, path.resolve(), file.st_mtime_ns, file.st_size, device)
    stock = _STOCKS.get(key)
    if stock is None or stock.version != weights_version(stock.captioner):
        stock = _STOCKS[key] = _make_stock(images, load_captioner(captioner), captioner, device)
    return stock


def _make_stock(images: CaptionDataset, speaker: Captioner, named: object, device: torch.device) -> Stock:
    _check_vocabulary(speaker, images, named)
    features = open_features(images, speaker.encoder.to(device))
    decoder = FrozenDecoder(speaker.decoder, speaker.vocabulary.silent, device)
    references = SplitReferences(images, speaker.vocabulary)
    return Stock(
        images, speaker, features, references, decoder, StartTable(decoder, features), weights_version(speaker)
    )


def _check_captioner_named(dataset: str, captioner: str | Path | Captioner | None) -> None:
    """Said before the data is looked for: without a captioner the data would be of no use."""
    if captioner is None and dataset in DATASETS and dataset not in shipped_captioners():
        raise ValueError(
            f"no captioner is shipped for {dataset}; train one with `python -m train.captioner --dataset {dataset}` "
            "and pass its file as captioner="
        )


def _check_vocabulary(speaker: Captioner, images: CaptionDataset, name: object) -> None:
    """A captioner that cannot say what the references say would make an empty game."""
    some = (reference for row in range(min(len(images), _COVERAGE_ROWS)) for reference in images.references(row))
    coverage = speaker.vocabulary.coverage(some)
    if coverage < _MIN_COVERAGE:
        raise ValueError(
            f"the vocabulary of captioner {name if isinstance(name, (str, Path)) else speaker.dataset!r}, trained on "
            f"{speaker.dataset}, holds only {coverage:.0%} of the words of {images.name}; pass a captioner trained on "
            f"{images.name}"
        )
