"""Karpathy's split files: one JSON with the photos, splits and captions of Flickr8k, Flickr30k or COCO.

Captions are tokenised from their raw text, as in all datasets; the file's own tokens are not used.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple, TypeVar

from glimpse_env.datasets.base import DataError, check_split, data_folder
from glimpse_env.datasets.photos import files

Kind = TypeVar("Kind")


class _Source(NamedTuple):
    title: str
    folders: tuple[str, ...]  # folders of photos without a "filepath"; the first that exists is used


_SOURCES = {
    "flickr8k": _Source("Flickr8k", ("Images", "Flicker8k_Dataset", "flickr8k-images", ".")),
    "flickr30k": _Source("Flickr30k", ("flickr30k-images", "flickr30k_images", "Images", ".")),
    "coco": _Source("COCO", (".",)),
}

# "restval" are the photos of COCO's validation set that are used for training.
_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def split_file(name: str) -> str:
    """Name of Karpathy's file of the dataset ``name``."""
    return f"dataset_{name}.json"


class Karpathy(files.PhotographDataset):
    """Flickr8k, Flickr30k or COCO in Karpathy's splits (Karpathy and Fei-Fei 2015), rows in the order of his file."""

    @classmethod
    def open(cls, name: str, split: str, data_root: str | Path) -> Karpathy:
        """Open one split.

        Args:
            name: flickr8k, flickr30k or coco.
            split: train, val or test; COCO's ``restval`` photos count as train.
            data_root: the folder with ``dataset_<name>.json`` and the photos, which are in the ``filepath`` that the
                file gives (COCO's train2014 and val2014), else in the dataset's usual folder or in ``data_root``.

        Raises:
            ValueError: the name or the split is unknown.
            FileNotFoundError: the folder, the file or the folder of photos is not there.
            DataError: the file is malformed, or a photo of the split is missing.
        """
        if name not in _SOURCES:
            raise ValueError(f"unknown dataset {name!r}; expected one of {', '.join(_SOURCES)}")
        known, root = check_split(split), data_folder(data_root, name)
        return cls(name, known, read_photographs(name, known, root), root / split_file(name))


def read_photographs(name: str, split: str, root: Path) -> list[files.Photograph]:
    """The rows of one split of the dataset ``name`` under ``root``; raises as :meth:`Karpathy.open` does."""
    path = root / split_file(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {_SOURCES[name].title} captions under '{root}'; expected {path.name} (set data_root= or $GLIMPSE_DATA)"
        )
    photographs: list[files.Photograph] = []
    folders: dict[str | None, files.PhotoFolder] = {}
    first_index: dict[str, int] = {}
    for index, entry in enumerate(_images(path)):
        where = f"{path}, images[{index}]"
        photo_name = _field(entry, "filename", str, where)
        where = f"{where} ({photo_name!r})"
        if not files.IMAGE_NAME.fullmatch(photo_name):
            raise DataError(f"{where}: 'filename' is not the name of an image; expected one like 123_abc.jpg")
        if (first := first_index.setdefault(photo_name, index)) != index:
            raise DataError(f"{where} stands already at images[{first}]; remove one of the two")
        if (photo_split := _field(entry, "split", str, where)) not in _SPLITS:
            raise DataError(f"{where}: unknown split {photo_split!r}; expected one of {', '.join(_SPLITS)}")
        references = _references(entry, where)
        if _SPLITS[photo_split] == split:
            subfolder = _subfolder(entry, where) if "filepath" in entry else None
            if subfolder not in folders:
                candidates = _SOURCES[name].folders if subfolder is None else (subfolder,)
                folders[subfolder] = files.PhotoFolder.find(root, candidates, _SOURCES[name].title)
            photographs.append(files.Photograph(photo_name, folders[subfolder].photo(photo_name, where), references))
    return photographs


def _images(path: Path) -> list[dict[str, object]]:
    """The entries of the file's ``images``, each a JSON object."""
    text = files.read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: broken JSON ({error.msg}); fetch the file again"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets nested as deep
        raise DataError(f"{path}: broken JSON ({error}); fetch the file again") from None
    entries = _field(content, "images", list, str(path))
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}, images[{index}] is not a JSON object; fetch the file again")
    return entries


def _subfolder(entry: dict[str, object], where: str) -> str:
    """The folder that an entry names for its photo, within the dataset's folder."""
    folder = _field(entry, "filepath", str, where)
    names = re.split(r"[/\\]", folder)
    if PureWindowsPath(folder).anchor or ".." in names or "\0" in folder or max(map(len, names)) > 255:
        raise DataError(f"{where}: 'filepath' {folder!r} is not a folder beside the file; fetch the file again")
    return folder


def _references(entry: dict[str, object], where: str) -> list[list[str]]:
    """The captions of an entry as lists of words; there is at least one."""
    references = []
    for index, sentence in enumerate(_field(entry, "sentences", list, where)):
        position = f"{where}, sentences[{index}]"
        references.append(files.caption_words(_field(sentence, "raw", str, position), position))
    if not references:
        raise DataError(f"{where} has no captions; add some to its 'sentences' or remove the image")
    return references


def _field(holder: object, key: str, kind: type[Kind], where: str) -> Kind:
    """``holder[key]``, of type ``kind``."""
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{where} has no {key!r} of type {kind.__name__}; fetch the file again")
    return value


WORLDS = tuple(
    files.photo_world(name, env_id, partial(Karpathy.open, name))
    for name, env_id in (("flickr30k", "Glimpse/Flickr30k-v0"), ("coco", "Glimpse/Coco-v0"))
)
