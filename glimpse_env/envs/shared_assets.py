"""What environments of one process share: dataset, captioner, features, references and packed decoder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from glimpse_env.datasets import CaptionDataset
from glimpse_env.features.build import open_features
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.references import SplitReferences, digest
from glimpse_env.models.captioner import Captioner, captioner_path, load_captioner, weights_version
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.rollout.initial_states import StartTable

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
