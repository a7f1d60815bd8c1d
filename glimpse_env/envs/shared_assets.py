"""Large objects that the environments of one process share: dataset, captioner, features, references and decoder."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from glimpse_env.datasets import CaptionDataset, find_world, make_dataset
from glimpse_env.datasets.registry import check_grid
from glimpse_env.features.build import open_features
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.references import SplitReferences, digest
from glimpse_env.models.captioner import Captioner, captioner_path, load_captioner, shipped_captioners, weights_version
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.rollout.initial_states import InitialStates

_MIN_COVERAGE = 0.5  # share of reference words that a captioner's vocabulary must hold
_COVERAGE_ROWS = 50


@dataclass(frozen=True, eq=False)
class SharedAssets:
    """The large objects of every environment of a process on the same images, captioner and device.

    Attributes:
        dataset: images and references of one split.
        captioner: the frozen captioner.
        features: annotation vectors of the split.
        references: of the split, as ids of the captioner's vocabulary.
        decoder: the captioner's, packed for the device.
        initial_states: its states before the first word.
        version: of the captioner's weights.
        file: of the captioner; None where it was passed as an object.
    """

    dataset: CaptionDataset
    captioner: Captioner
    features: FeatureTable
    references: SplitReferences
    decoder: FrozenDecoder
    initial_states: InitialStates
    version: int
    file: Path | None = None


_ASSETS: WeakValueDictionary[tuple[object, ...], SharedAssets] = WeakValueDictionary()  # live as long as an environment


def find_assets(
    dataset: str,
    split: str,
    captioner: str | Path | Captioner | None,
    data_root: str | Path | None,
    device: str | torch.device,
) -> SharedAssets:
    """The assets of another environment of this process, if they are the same and their weights are unchanged, or new.

    A ``Captioner`` object may be changed by its owner, so its assets are not shared. Arguments and errors are those of
    ``GlimpseBase``.
    """
    world = find_world(dataset)
    if captioner is None:
        captioner = world.captioner or world.name
    if captioner == world.name and world.name not in shipped_captioners():
        raise ValueError(
            f"no captioner is shipped for {world.name}; train one with `python -m train.captioner --dataset {dataset}` "
            "and pass its file as captioner="
        )
    images = make_dataset(dataset, split, data_root)
    device = _usable_device(device)
    if isinstance(captioner, Captioner):
        return _open_assets(images, captioner, repr(captioner.dataset), device)
    path = captioner_path(captioner).resolve()
    file = path.stat()
    environment = (str(data_root), os.environ.get("GLIMPSE_DATA"), os.environ.get("GLIMPSE_CACHE"))
    captions = None if images.procedural else digest(images)
    split_key = (images.name, images.split, images.fingerprint(), captions, *environment)
    key = (*split_key, path, file.st_mtime_ns, file.st_size, device)
    assets = _ASSETS.get(key)
    if assets is None or assets.version != weights_version(assets.captioner):
        assets = _open_assets(images, load_captioner(captioner), str(captioner), device)
        assets = _ASSETS[key] = replace(assets, file=path)
    return assets


def _usable_device(device: str | torch.device) -> torch.device:
    try:
        usable = torch.device(device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # the second where CUDA is lacking
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if usable.type == "meta":
        raise ValueError("device 'meta' cannot be used: it holds no values")
    return usable


def _open_assets(images: CaptionDataset, captioner: Captioner, name: str, device: torch.device) -> SharedAssets:
    """New assets; an error calls the captioner by ``name``."""
    rows = range(min(len(images), _COVERAGE_ROWS))
    coverage = captioner.vocabulary.coverage(reference for row in rows for reference in images.references(row))
    if coverage < _MIN_COVERAGE:
        raise ValueError(
            f"the vocabulary of captioner {name}, trained on {captioner.dataset}, holds only {coverage:.0%} of the "
            f"words of {images.name}; pass a captioner trained on {images.name}"
        )
    foreign = captioner.dataset != images.name  # one of another world may see these images on a grid of its own
    cure = f"pass a captioner trained on {images.name}"
    check_grid(images.name, captioner.encoder.grid, f"captioner {name}", cure, axes_only=foreign)
    features = open_features(images, captioner.encoder.to(device))
    decoder = FrozenDecoder(captioner.decoder, captioner.vocabulary.suppressed, device)
    references = SplitReferences(images, captioner.vocabulary)
    initial_states = InitialStates(decoder, features)
    version = weights_version(captioner)
    return SharedAssets(images, captioner, features, references, decoder, initial_states, version)
