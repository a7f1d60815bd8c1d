"""The registry of worlds: every dataset by name, and the data folder it is opened from.

Ids, ``--dataset``, recipes, metrics, reports and model cards read it. A new world is one file and one line here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from glimpse_env.datasets import shapes
from glimpse_env.datasets.base import CaptionDataset, DatasetSpec, check_split, data_folder
from glimpse_env.datasets.photos import flickr8k, karpathy, webdataset

_WORLDS: dict[str, DatasetSpec] = {}
WORLDS: Mapping[str, DatasetSpec] = MappingProxyType(_WORLDS)  # by name, in the order of registration


def add_world(spec: DatasetSpec) -> None:
    """Add a world without its environment; argument and errors are those of ``glimpse_env.register_world``."""
    if not isinstance(spec, DatasetSpec):
        raise TypeError(f"a world is registered as a DatasetSpec, got {spec!r}")
    if spec in _WORLDS.values():
        return
    for attribute in ("name", "env_id"):
        value = getattr(spec, attribute)
        if value in [getattr(world, attribute) for world in _WORLDS.values()]:
            raise ValueError(f"a world with the {attribute} {value!r} is registered already; choose another")
    _WORLDS[spec.name] = spec


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
    if module:
        importlib.import_module(module)
    worlds: dict[str, DatasetSpec] = {getattr(world, attribute): world for world in _WORLDS.values()}
    if rest not in worlds:
        raise ValueError(f"unknown {kind} {rest!r}; expected one of {', '.join(worlds)}")
    return worlds[rest]


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
        ValueError: the world or the split is unknown.
        FileNotFoundError: the data, or the list of the split, is not there.
        DataError: a file of the dataset is wrong; the message names it.
    """
    known, world = check_split(split), find_world(name)
    return world.open(known, find_data_root(world.name, data_root) if world.needs_data else None)
