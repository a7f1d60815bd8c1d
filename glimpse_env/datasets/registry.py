"""The registry of worlds: every dataset by name, and the data folder it is opened from.

Ids, ``--dataset``, recipes, measures, reports and model cards read it. A new world is one file and one line here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from glimpse_env.datasets import shapes
from glimpse_env.datasets.base import CaptionDataset, DatasetSpec, check_split
from glimpse_env.datasets.photos import flickr8k, karpathy, webdataset

_WORLDS: dict[str, DatasetSpec] = {}
WORLDS: Mapping[str, DatasetSpec] = MappingProxyType(_WORLDS)  # by name, in the order of registration


def add_world(spec: DatasetSpec) -> None:
    """Add a world; adding the same one again does nothing.

    Raises:
        TypeError: it is no ``DatasetSpec``.
        ValueError: its name or its id belongs to another world.
    """
    if not isinstance(spec, DatasetSpec):
        raise TypeError(f"a world is registered as a DatasetSpec, got {spec!r}")
    for world in _WORLDS.values():
        if world == spec:
            return
        for attribute in ("name", "env_id"):
            if getattr(world, attribute) == getattr(spec, attribute):
                raise ValueError(
                    f"a world with the {attribute} {getattr(spec, attribute)!r} is registered already; choose another"
                )
    _WORLDS[spec.name] = spec


for _spec in (*shapes.WORLDS, flickr8k.WORLD, *karpathy.WORLDS, webdataset.WORLD):
    add_world(_spec)


def find_world(name: str) -> DatasetSpec:
    """A world by name; ``module:name`` imports the module that registers it first.

    Raises:
        ValueError: there is no world of that name.
        ImportError: the module cannot be imported.
    """
    module, _, rest = str(name).rpartition(":")
    if module:
        importlib.import_module(module)
    if rest not in _WORLDS:
        raise ValueError(f"unknown dataset {rest!r}; expected one of {', '.join(_WORLDS)}")
    return _WORLDS[rest]


def world_of(env_id: str) -> DatasetSpec:
    """The world of an environment's id; ``module:id`` imports the module that registers it first.

    Raises:
        ValueError: no world has that id.
        ImportError: the module cannot be imported.
    """
    module, _, rest = str(env_id).rpartition(":")
    if module:
        importlib.import_module(module)
    for world in _WORLDS.values():
        if world.env_id == rest:
            return world
    known = ", ".join(world.env_id for world in _WORLDS.values())
    raise ValueError(f"unknown environment {rest!r}; expected one of {known}")


def find_data_root(name: str, data_root: str | Path | None = None) -> Path:
    """The folder a dataset lies in.

    Args:
        name: the dataset.
        data_root: the folder itself, or one that holds it under the dataset's name; else ``$GLIMPSE_DATA/<name>``.

    Raises:
        FileNotFoundError: neither is given, or the folder does not exist.
    """
    if data_root is None:
        if not os.environ.get("GLIMPSE_DATA"):
            raise FileNotFoundError(
                f"{name} is not part of this package; say where its folder is with data_root=, "
                f"or set $GLIMPSE_DATA to the folder that holds {name}/"
            )
        data_root = os.environ["GLIMPSE_DATA"]
    root = Path(data_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {str(root)!r}; set data_root= or $GLIMPSE_DATA to where {name} lies")
    return root / name if (root / name).is_dir() else root


def make_dataset(name: str, split: str, data_root: str | Path | None = None) -> CaptionDataset:
    """One split of a world's dataset.

    Args:
        name: of a registered world.
        split: ``train``, ``val`` or ``test``.
        data_root: where the dataset lies, as in ``find_data_root``; not read by worlds that need no data.

    Raises:
        ValueError: the world or the split is unknown.
        FileNotFoundError: the data, or the list of the split, is not there.
        DataError: a file of the dataset is wrong; the message names it.
    """
    split = check_split(split)
    world = find_world(name)
    return world.open(split, find_data_root(world.name, data_root) if world.needs_data else None)
