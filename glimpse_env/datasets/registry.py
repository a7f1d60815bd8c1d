"""The registry of worlds: every dataset by name, and the data folder it is opened from.

Ids, ``--dataset``, recipes, metrics, reports and model cards read it. A new world is one file and one line here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.datasets import shapes
from glimpse_env.datasets.base import CaptionDataset, DatasetSpec, GroundedDataset, check_split, data_folder
from glimpse_env.datasets.photos import flickr8k, karpathy, webdataset

_WORLDS: dict[str, DatasetSpec] = {}
_KEYS: dict[str, tuple[object, ...]] = {}  # id, file and function that each was registered with at first
WORLDS: Mapping[str, DatasetSpec] = MappingProxyType(_WORLDS)  # by name, in the order of registration


def add_world(spec: DatasetSpec, source: str = __name__) -> None:
    """Add a world, or replace one of the same file, ``source``; without its id, and otherwise as ``register_world``."""
    key = (spec.env_id, source, getattr(spec.open, "__qualname__", None))
    for attribute in ("name", "env_id"):
        value, others = getattr(spec, attribute), (world for world in _WORLDS.values() if world != spec)
        if _KEYS.get(spec.name) != key and value in [getattr(world, attribute) for world in others]:
            raise ValueError(f"a world with the {attribute} {value!r} is registered already; choose another")
    _WORLDS[spec.name] = spec
    _KEYS.setdefault(spec.name, key)


for _spec in (*shapes.WORLDS, flickr8k.WORLD, *karpathy.WORLDS, webdataset.WORLD):
    add_world(_spec)


def find_world(name: str) -> DatasetSpec:
    """A world by name; ``module:name`` imports the module that registers it first.

    Raises:
        ValueError: there is no such world.
        ImportError: the module cannot be imported.
    """
    return _find("name", name, "dataset")


def world_of(env_id: str) -> DatasetSpec:
    """The world of an environment's id, which may be ``module:id``; raises as ``find_world`` does."""
    return _find("env_id", env_id, "environment")


def _find(attribute: str, value: str, kind: str) -> DatasetSpec:
    module, _, rest = str(value).rpartition(":")
    try:
        importlib.import_module(module or __name__)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # the module exists, one that it imports does not
            raise
        raise ModuleNotFoundError(f"no module {module!r} of {kind} {rest!r}; run from the folder it is in") from error
    worlds: dict[str, DatasetSpec] = {getattr(world, attribute): world for world in _WORLDS.values()}
    if rest not in worlds:
        raise ValueError(f"unknown {kind} {rest!r}; expected one of {', '.join(worlds)}")
    return worlds[rest]


def check_grid(name: str, sees: LocationGrid, model: str, cure: str, axes_only: bool = False) -> None:
    """Check that what a model ``sees`` is the grid of a world, or, with ``axes_only``, has as many axes.

    Raises:
        ValueError: it is not; the message calls the model ``model``, and ends with ``cure``.
    """
    grid = find_world(name).grid or sees
    if len(sees.shape) != len(grid.shape) or (sees.shape != grid.shape and not axes_only):
        raise ValueError(f"{model} sees a grid of {sees} locations, but {name} has {grid}; {cure}")


def find_data_root(name: str, data_root: str | Path | None = None) -> Path:
    """The folder a dataset lies in.

    Args:
        name: the dataset.
        data_root: the folder itself, or one that holds it under the dataset's name; else ``$GLIMPSE_DATA/<name>``.

    Raises:
        FileNotFoundError: neither is given, or the folder does not exist.
    """
    if data_root is None:
        data_root = os.environ.get("GLIMPSE_DATA")
        if not data_root:
            raise FileNotFoundError(
                f"{name} is not part of this package; say where its folder is with data_root=, "
                f"or set $GLIMPSE_DATA to the folder that holds {name}/"
            )
    root = data_folder(data_root, name)
    return root / name if (root / name).is_dir() else root


def make_dataset(name: str, split: str, data_root: str | Path | None = None) -> CaptionDataset:
    """One split, ``train``, ``val`` or ``test``, of the dataset of the world ``name``.

    ``data_root`` is that of ``find_data_root``; worlds that need no data do not read it.

    Raises:
        ValueError: the world or the split is unknown, or ``open`` of the world returns no such dataset.
        FileNotFoundError: the data, or the list of the split, is not there.
        DataError: a file of the dataset is wrong; the message names it.
    """
    known, world = check_split(split), find_world(name)
    dataset = world.open(known, find_data_root(world.name, data_root) if world.needs_data else None)
    opened = (dataset.name, dataset.split) if isinstance(dataset, CaptionDataset) else dataset
    if opened != (world.name, known):
        expected = f"a CaptionDataset whose name and split are {(world.name, known)}"
        raise ValueError(f"open= of world {world.name!r} returned {opened!r}, expected {expected}")
    if world.grounded and not isinstance(dataset, GroundedDataset):
        lacks = f"world {world.name!r} is grounded=True, but {type(dataset).__name__} lacks a part of GroundedDataset"
        raise ValueError(f"{lacks}; write it, or leave out grounded=")
    return dataset
