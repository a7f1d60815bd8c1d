"""Shared by the datasets of photographs: photo files as RGB images, folders of them, text files and fingerprints."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from sys import intern
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from glimpse_env.core.vocabulary import tokenize
from glimpse_env.datasets.base import CaptionDataset, DataError, DatasetSpec, Split

# Formats that Pillow lists but reads with another program, such as Ghostscript, or not at all.
UNREADABLE_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
IMAGE_NAME = re.compile(r"[^\t\n#/\\]+\.(?:jpe?g|png)", re.IGNORECASE)

# What Pillow's decoders and its EXIF reader raise for files that are truncated, huge or not images.
_BUILT_IN = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, MemoryError)
_UNREADABLE = (*_BUILT_IN, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)


class Photograph(NamedTuple):
    """One row of a dataset: the file's name and path, and its captions as lists of words."""

    name: str
    path: Path
    references: list[list[str]]


class PhotographDataset:
    """One split of a dataset whose images are photo files; a :class:`~glimpse_env.datasets.base.CaptionDataset`.

    Args:
        name: the dataset's name, as in ``flickr8k``.
        split: train, val or test.
        photographs: its rows, in order.
        source: the file that lists the rows, for messages.

    Raises:
        DataError: there are no rows.
    """

    procedural = False

    def __init__(self, name: str, split: Split, photographs: Sequence[Photograph], source: Path) -> None:
        if not photographs:
            raise DataError(f"{source} names no image of the {split} split of {name}; add its images and captions")
        self.name = name
        self.split: Split = split
        self._photographs = photographs
        self._source = source

    def __len__(self) -> int:
        return len(self._photographs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, split={self.split!r}, {len(self)} images)"

    def image(self, row: int) -> Image.Image:
        """The photo of a row, as ``read_photograph`` reads it."""
        cure = f"fetch the file again or remove the image from {self._source}"
        return read_photograph(self._photographs[row].path, cure)

    def image_id(self, row: int) -> str:
        """The file name of a row's photo, unique within the dataset."""
        return self._photographs[row].name

    def references(self, row: int) -> list[list[str]]:
        """The captions of a row as new lists of words: lower case, no punctuation."""
        return [list(words) for words in self._photographs[row].references]

    def fingerprint(self) -> str:
        """SHA-256 over dataset, split, and each photo's name, size and modification time; 6,000 photos take 25 ms.

        Raises:
            DataError: a file was removed after the dataset was opened.
        """
        files = ((photo.name, photo.path) for photo in self._photographs)
        return hash_files(self.name, self.split, files, f"fetch it or remove it from {self._source}")


def hash_files(name: str, split: str, files: Iterable[tuple[str, Path]], cure: str) -> str:
    """SHA-256 over dataset, split, and the name, size and modification time of ``files``, each (name, path)."""
    digest = hashlib.sha256(repr((name, split)).encode())
    for file_name, path in files:
        try:
            status = path.stat()
        except FileNotFoundError:
            raise DataError(f"{path} is missing; {cure}") from None
        digest.update(repr((file_name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def read_photograph(path: Path, cure: str = "name another file") -> Image.Image:
    """Read a photo of any format Pillow supports: RGB at its own size, turned upright as its EXIF orientation says.

    An animation gives its first frame; transparent pixels become white. Formats that need another program, such as
    EPS, are refused.

    Args:
        path: the file.
        cure: what error messages recommend.

    Raises:
        DataError: the file is missing, truncated, not an image, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file; {cure}")  # reading a pipe would block
    return decode_photograph(path, str(path), cure)


def decode_photograph(source: Path | BinaryIO, where: str, cure: str) -> Image.Image:
    """:func:`read_photograph` for a path or an open file, called ``where`` in messages; raises the same."""
    Image.init()
    try:
        with Image.open(source, formats=sorted({*Image.OPEN} - UNREADABLE_FORMATS)) as photo:
            # Pillow only warns up to twice its limit. Turning that warning into an error would change the
            # process-wide warning filters, which is not safe in threads, so the limit is checked here.
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and photo.width * photo.height > limit:
                raise Image.DecompressionBombError(f"{photo.width} x {photo.height} pixels, more than {limit}")
            return as_rgb(ImageOps.exif_transpose(photo))
    except FileNotFoundError:
        raise DataError(f"{where} is missing; {cure}") from None
    except _UNREADABLE as error:
        raise DataError(f"{where} cannot be read as an image ({error}); {cure}") from error


def as_rgb(photo: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: transparent pixels become white, greys of more than 8 bits are scaled to 8.

    Values above 255 are taken as 16-bit or, above 65535, as shares of the picture's largest; fractions up to 1 as
    shares of white.
    """
    if photo.mode in ("F", "I") or photo.mode.startswith("I;16"):
        deep = np.nan_to_num(np.asarray(photo, np.float64), posinf=0.0, neginf=0.0).clip(0)
        largest = deep.max(initial=0.0)
        if photo.mode.startswith("I;16") or 255 < largest <= 65535:
            deep = deep * 255 / 65535
        elif largest > 65535:
            deep = deep * 255 / largest
        elif photo.mode == "F" and largest <= 1:
            deep = deep * 255
        return Image.fromarray(deep.round().astype(np.uint8)).convert("RGB")
    if photo.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in photo.info:
        clear = photo.convert("RGBA")
        ground = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(ground, clear).convert("RGB")
    return photo.convert("RGB")


class PhotoFolder(NamedTuple):
    """A folder and the names of its photo files, listed once, which is faster than checking each file."""

    path: Path
    names: frozenset[str]

    @classmethod
    def find(cls, root: Path, candidates: Iterable[str], title: str) -> PhotoFolder:
        """The first of the ``candidates`` under ``root`` that holds photos."""
        for path in (root / candidate for candidate in candidates):
            entries = path.iterdir() if path.is_dir() else ()
            if names := frozenset(entry.name for entry in entries if IMAGE_NAME.fullmatch(entry.name)):
                return cls(path, names)
        expected = " or ".join(str(Path(candidate) / "*.jpg") for candidate in candidates)
        raise FileNotFoundError(
            f"no {title} images under '{root}'; expected {expected} (set data_root= or $GLIMPSE_DATA)"
        )

    def photo(self, name: str, where: str) -> Path:
        """Path of the photo called ``name``, which is listed at ``where``."""
        if name not in self.names:
            raise DataError(f"{where}: image {name!r} is not in '{self.path}'; fetch it or remove it from the list")
        return self.path / name


def read_text(path: Path) -> str:
    """The text of a UTF-8 file without its byte order mark, with line feeds as line ends."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        # error.object, not raw: error.start does not count the byte order mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from None


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file as (file and line for messages, text); a last newline starts no further line."""
    text = read_text(path).removesuffix("\n")
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1)] if text else []
    for where, line in lines:
        if not line.strip():
            raise DataError(f"{where} is blank; remove the line")
    return lines


def caption_words(caption: str, where: str) -> list[str]:
    """The words of a caption, of which there is one at least, interned so that each is in memory once."""
    words = [intern(word) for word in tokenize(caption)]
    if not words:
        raise DataError(f"{where}: the caption {caption.strip()!r} has no words; write one or remove it")
    return words


def photo_world(name: str, env_id: str, open: Callable[[Split, Path], CaptionDataset], **fields: Any) -> DatasetSpec:
    """A world of photographs in a folder of the user's, seen by the offline backbone."""
    return DatasetSpec(
        name, env_id, open, encoder="efficientnet-lite2", recipe="photographs", needs_data=True, **fields
    )
