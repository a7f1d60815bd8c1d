"""Photographs and captions in tar files, as WebDataset and img2dataset write them.

Nothing is unpacked: a photograph is read from its offset in the shard. The shards' names define the splits.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from sys import intern
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from PIL import Image

from glimpse_env.datasets.base import DataError, Split, check_split, data_folder
from glimpse_env.datasets.photos.files import caption_words, decode_photograph, hash_files, photo_world

IMAGE_KINDS = frozenset({"jpg", "jpeg", "png", "webp"})
LARGEST_IMAGE, LARGEST_TEXT = 1 << 26, 1 << 20  # bytes of a member
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # key, and kind after the first dot, as in WebDataset


class _Sample(NamedTuple):
    """A photograph of a shard: the name its members share, offset and size in bytes, and captions as words."""

    key: str
    offset: int
    size: int
    references: list[list[str]]


class WebDataset:
    """One split of photographs in tar shards; a :class:`~glimpse_env.datasets.base.CaptionDataset`.

    A shard holds, one after the other, the members of each photograph: ``KEY.jpg`` (or ``.jpeg``, ``.png``,
    ``.webp``), and its captions in ``KEY.txt``, one a line, or in ``KEY.json`` as ``captions``, a list, or
    ``caption``. Other members are ignored. Names serve as keys only; no member is ever written to disk.

    Rows are in the order of the shards' names and, within a shard, of its members, so that reading rows in order reads
    each shard from start to end.
    """

    procedural = False

    def __init__(self, split: Split, shards: list[Path]) -> None:
        self.name = "webdataset"
        self.split: Split = split
        self._shards = shards
        self._keys: list[str] = []
        self._captions: list[str] = []  # words joined by spaces, captions by newlines: a quarter of the memory of lists
        extents = array("q")  # shard, offset and size of each row: a tenth of the memory of tuples
        first: dict[str, Path] = {}
        for number, shard in enumerate(shards):
            for sample in _read_shard(shard):
                if first.setdefault(sample.key, shard) != shard:
                    raise DataError(
                        f"{shard}: {sample.key!r} stands already in {first[sample.key]}; remove one of the two"
                    )
                self._keys.append(sample.key)
                self._captions.append("\n".join(map(" ".join, sample.references)))
                extents.extend((number, sample.offset, sample.size))
        if not extents:
            raise DataError(f"{shards[0]} and the other shards of {split} hold no photograph; add some")
        self._extents = np.array(extents).reshape(-1, 3)

    @classmethod
    def open(cls, split: str, data_root: str | Path) -> WebDataset:
        """Open the shards of one split: ``SPLIT/*.tar``, or ``SPLIT.tar`` and ``SPLIT-*.tar``.

        Every shard is scanned for offsets and captions. A dataset that is still in use in this process is returned
        again while its shards are unchanged.

        Args:
            split: train, val or test.
            data_root: the folder that holds them.

        Raises:
            ValueError: the split is unknown.
            FileNotFoundError: the folder does not exist, or has no shard of the split.
            DataError: a shard is malformed; the message names it and the member.
        """
        known, root = check_split(split), data_folder(data_root, "webdataset")
        shards = sorted((root / split).glob("*.tar")) or sorted(
            {*root.glob(f"{split}.tar"), *root.glob(f"{split}-*.tar")}
        )
        if not shards:
            raise FileNotFoundError(
                f"no shards of {split} under '{root}'; expected {Path(split, '*.tar')} or {split}-*.tar "
                "(set data_root= or $GLIMPSE_DATA)"
            )
        key = (cls, known, *((shard.resolve(), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards))
        opened = _OPENED.get(key)
        if opened is None:
            opened = _OPENED[key] = cls(known, shards)
        return opened

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(split={self.split!r}, {len(self)} images in {len(self._shards)} shards)"

    def image(self, row: int) -> Image.Image:
        """The photograph of a row, as ``read_photograph`` reads files."""
        number, offset, size = self._extents[row].tolist()
        shard = self._shards[number]
        where, cure = f"{self._keys[row]!r} in {shard}", "fetch the shard again or remove the photograph"
        try:
            with shard.open("rb") as file:
                file.seek(offset)
                photo = file.read(size)
        except OSError as error:
            raise DataError(f"{where} cannot be read ({error}); {cure}") from error
        if len(photo) < size:
            raise DataError(f"{where} is cut off: the shard has changed; {cure}")
        return decode_photograph(io.BytesIO(photo), where, cure)

    def image_id(self, row: int) -> str:
        """The key of a row's photograph, unique within the dataset."""
        return self._keys[row]

    def references(self, row: int) -> list[list[str]]:
        """The captions of a row as new lists of words: lower case, no punctuation."""
        return [line.split(" ") for line in self._captions[row].split("\n")]

    def fingerprint(self) -> str:
        """SHA-256 over dataset, split, and each shard's name, size and modification time."""
        return hash_files(self.name, self.split, ((shard.name, shard) for shard in self._shards), "fetch it again")


_OPENED: WeakValueDictionary[tuple[object, ...], WebDataset] = WeakValueDictionary()


def _read_shard(path: Path) -> Iterator[_Sample]:
    """The photographs of a shard, in its order, without decoding them."""
    keys: set[str] = set()
    named = ((name, member, text) for member, text in _members(path) if (name := _NAME.fullmatch(member.name)))
    for key, group in itertools.groupby(named, lambda item: item[0][1]):
        if key in keys:
            raise DataError(f"{path}: members of {key!r} stand in two places; write the shard again")
        keys.add(key)
        extent: tuple[int, int] | None = None  # offset and size of the photograph
        texts: dict[str, bytes] = {}
        for name, member, text in group:
            kind = name[2].lower()
            if text is not None:
                texts[kind] = text
            elif kind in IMAGE_KINDS:
                if extent is not None:
                    raise DataError(f"{path}: {key!r} has two photographs; remove one")
                extent = (member.offset_data, member.size)
        if extent or texts:
            yield _sample(key, extent, texts, f"{path}: {key!r}")


def _sample(key: str, extent: tuple[int, int] | None, texts: dict[str, bytes], where: str) -> _Sample:
    """The members of one key; raises ``DataError`` where one is missing or malformed."""
    if not key.isprintable():
        raise DataError(f"{where} is no name; write the shard again")
    if extent is None:
        raise DataError(f"{where} has captions and no photograph; add it or remove the captions")
    if not texts:
        raise DataError(f"{where} has no captions; add {key}.txt or {key}.json, or remove the photograph")
    if "txt" in texts:
        captions = [line for line in _decode(texts["txt"], where).splitlines() if line.strip()]
    else:
        captions = _json_captions(texts["json"], where)
    references = [caption_words(caption, where) for caption in captions]
    if not references:
        raise DataError(f"{where} has no captions; add some or remove the photograph")
    return _Sample(intern(key), *extent, references)


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Header and, of captions, the content of every file of a tar."""
    cure = "fetch the shard again, or write it again, uncompressed"
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # or tarfile keeps all headers
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(f"{path}: {member.name!r} is a link or no plain file; write the shard without it")
                kind = member.name.rpartition("/")[2].partition(".")[2].lower()
                captions = kind in ("txt", "json")
                if member.size > (LARGEST_TEXT if captions else LARGEST_IMAGE) and (captions or kind in IMAGE_KINDS):
                    raise DataError(
                        f"{path}: {member.name!r} has {member.size} bytes, too many; write the shard without it"
                    )
                text = None
                if captions:
                    file.seek(member.offset_data)
                    text = file.read(member.size)
                    if len(text) < member.size:
                        raise DataError(f"{path} is cut off within {member.name!r}; {cure}")
                yield member, text
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile itself stops silently
                raise DataError(f"{path} is cut off or damaged at byte {tar.offset}; {cure}")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; fetch it again") from None
    except (OSError, tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no whole tar ({error}); {cure}") from error


def _json_captions(text: bytes, where: str) -> list[str]:
    """The ``captions``, or the ``caption``, of a JSON object."""
    decoded = _decode(text, where)
    try:
        content = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON ({error}); write the shard again") from None
    fields = content if isinstance(content, dict) else {}
    captions = fields.get("captions", [fields.get("caption")])
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(
            f"{where}: its JSON has neither 'captions', a list of strings, nor 'caption', a string; add one"
        )
    return captions


def _decode(text: bytes, where: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: its captions are not UTF-8 ({error}); write the shard again") from None


WORLD = photo_world("webdataset", "Glimpse/WebDataset-v0", WebDataset.open)
