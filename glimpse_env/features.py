"""Annotation vectors of a whole split, computed once and shared read-only.

Knows how a table is built, kept on disk and recognised. It does not know captions, episodes or agents.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import tokenize
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from glimpse_env.datasets.base import CaptionDataset
from glimpse_env.encoder import CNNEncoder
from glimpse_env.files import atomic_path, sweep

FORMAT = "glimpse-features-1"
CHUNK = 64  # rows of photographs encoded together
SMALL_CHUNK = 8  # rows of procedural images; fixed, so that a row's values never depend on which rows were asked for

Half = npt.NDArray[np.float16]

# What numpy raises for a file that is no array of its own: cut off, damaged, or claiming an impossible shape.
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError)


class FeatureTableError(ValueError):
    """A feature table on disk is half written, damaged, or of another dataset or encoder."""


class FeatureTable:
    """Annotations (N, L, D), float16, of the N rows of a split.

    ``table[rows]`` gives those rows; a table is read-only, and one table may serve any number of environments.

    Args:
        array: (N, L, D), float16; usually memory-mapped.
        path: the file it is mapped from, if it is; a pickle then holds the path and not the values.
    """

    def __init__(self, array: Half, path: Path | None = None) -> None:
        self._file = path
        self._array = np.asarray(array)  # a view without np.memmap's slow indexing
        self._tensors: dict[torch.device, Tensor] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, L, D)."""
        rows, locations, features = self._array.shape
        return rows, locations, features

    @property
    def dtype(self) -> np.dtype[np.float16]:
        """float16."""
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """Annotations of ``rows``: (L, D) for one row, (B, L, D) for B of them. A fresh array."""
        return self._array[rows].copy() if isinstance(rows, slice) else self._array[np.asarray(rows)]

    def at(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """Annotations (B, D) of one location of each of B rows: what a hard glimpse reads. A fresh array."""
        _, count, features = self.shape
        places = np.asarray(rows) * count + np.asarray(locations)
        chosen: Half = self._array.reshape(-1, features).take(places, 0)  # twice as fast as two indices
        return chosen

    def glimpsed(self, rows: npt.NDArray[np.int64], locations: npt.NDArray[Any], device: torch.device) -> Tensor:
        """``at`` as a tensor (B, D), float16, on a device; read there, if that is a GPU."""
        if device.type == "cpu":
            return torch.from_numpy(self.at(rows, locations))
        places = torch.from_numpy(rows).to(device), torch.from_numpy(locations).to(device)
        return self.on(device)[places]

    def rows(self, rows: Tensor, device: torch.device) -> Tensor:
        """Annotations of ``rows`` (B,), int64, as a tensor (B, L, D), float16, on a device."""
        if device.type == "cpu":
            return torch.from_numpy(self[rows.cpu().numpy()])
        return self.on(device)[rows.to(device)]

    def on(self, device: torch.device) -> Tensor:
        """The whole table as one tensor (N, L, D), float16, on a device, put there once for all who ask."""
        if device not in self._tensors:
            self._tensors[device] = torch.from_numpy(np.asarray(self)).to(device)
        return self._tensors[device]

    def __reduce__(self) -> tuple[Any, ...]:
        """By its file, where it has one."""
        if self._file is None:
            return FeatureTable, (self._array,)
        return _mapped, (self._file,)

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTable:
        """The same table: it is read-only."""
        return self

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole table."""
        return np.array(self._array, dtype=dtype, copy=copy)


def _mapped(path: Path) -> FeatureTable:
    return FeatureTable(_map(path, "r"), path)


def _map(path: Path, mode: Literal["r", "r+"]) -> npt.NDArray[Any]:
    """An array of a file, memory-mapped; never a pickle.

    Raises:
        FeatureTableError: the file is missing, cut off, damaged or no array.
    """
    try:
        return np.lib.format.open_memmap(path, mode)
    except (*_UNREADABLE, tokenize.TokenError) as error:
        raise FeatureTableError(f"{str(path)!r} is no array ({error})") from error


class ProceduralFeatures(FeatureTable):
    """A table of images that are computed, not read: a row is encoded when it is first asked for.

    With a file, what one process has encoded the others read, now and later. A chunk of rows counts as encoded when its
    checksum is right, so what was cut off in between is encoded again.

    Args:
        dataset: the images.
        encoder: makes their annotations.
        path: the file, made when it is not there; None for memory of its own.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, dataset: CaptionDataset, encoder: CNNEncoder, path: Path | None = None) -> None:
        shape = (len(dataset), encoder.config.num_locations, encoder.config.feature_dim)
        chunks = -(-len(dataset) // SMALL_CHUNK)
        self._sums = np.zeros(chunks, np.uint32)
        if path is None:
            array = np.zeros(shape, np.float16)
        else:
            array = _open_shared(path, shape, np.float16)
            self._sums = _open_shared(path.with_suffix(".sums.npy"), (chunks,), np.uint32)
        super().__init__(array)
        self._dataset, self._path = dataset, path
        self._encoder = copy.deepcopy(encoder).requires_grad_(
            False
        )  # the file is of these weights, whatever becomes of them
        self._known = np.zeros(chunks, bool)
        self._complete = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its values, which the file has or the encoder makes again."""
        return ProceduralFeatures, (self._dataset, self._encoder, self._path)

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """Annotations of ``rows``, encoded now if they were not before."""
        self._learn(np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)])
        return super().__getitem__(rows)

    def at(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """Annotations (B, D) of one location of each of B rows, encoded now if they were not before."""
        self._learn(np.asarray(rows))
        return super().at(rows, locations)

    def _learn(self, rows: npt.NDArray[np.int64]) -> None:
        if self._complete:
            return
        chunks = rows // SMALL_CHUNK
        for chunk in np.unique(chunks[~self._known[chunks]]).tolist():
            start = chunk * SMALL_CHUNK
            kept = self._array[start : start + SMALL_CHUNK]
            if not self._sums[chunk] or self._sums[chunk] != _checksum(kept):
                kept[:] = _encode(self._dataset, self._encoder, start, SMALL_CHUNK)
                self._sums[chunk] = _checksum(kept)
            self._known[chunk] = True
            self._complete = bool(self._known.all())

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole table, every row encoded."""
        return np.array(self[:], dtype=dtype)


def _open_shared(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array in a file that several processes read and write; zeros where it is new.

    Raises:
        OSError: there is no room for it, or it cannot be written.
    """
    try:
        found = _map(path, "r")  # "r+" would let a damaged header's shape grow the file
        if found.shape == shape and found.dtype == dtype and found.flags.c_contiguous:
            return np.asarray(_map(path, "r+"))
    except FeatureTableError:
        pass  # none there, or none whole: a new one takes its place
    with atomic_path(path) as partial:
        np.lib.format.open_memmap(partial, "w+", dtype, shape).flush()
        with partial.open("r+b") as file:  # a hole that finds no room later would end the process
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
    return np.asarray(_map(path, "r+"))


def _checksum(values: Half) -> int:
    return zlib.crc32(values.tobytes()) or 1  # 0 stands for none yet


def _encode(dataset: CaptionDataset, encoder: CNNEncoder, start: int, count: int) -> Half:
    rows = range(start, min(start + count, len(dataset)))
    annotations: Half = encoder.encode([dataset.image(row) for row in rows]).half().cpu().numpy()
    return annotations


def cache_folder() -> Path:
    """Where tables are kept: ``$GLIMPSE_CACHE``, else ``~/.cache/glimpse_env``."""
    return Path(os.environ.get("GLIMPSE_CACHE") or Path.home() / ".cache" / "glimpse_env")


def _key(dataset: CaptionDataset, encoder: CNNEncoder) -> str:
    parts = (FORMAT, dataset.fingerprint(), encoder.fingerprint())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _identity(dataset: CaptionDataset, encoder: CNNEncoder) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "key": _key(dataset, encoder),
        "dataset": dataset.name,
        "split": dataset.split,
        "encoder": encoder.config.backbone,
        "shape": [len(dataset), encoder.config.num_locations, encoder.config.feature_dim],
    }


def table_path(dataset: CaptionDataset, encoder: CNNEncoder, folder: Path | None = None) -> Path:
    """The file a table is kept in; its name holds the key of its images and its encoder."""
    name = f"{dataset.name}-{dataset.split}-{encoder.config.backbone}-{_key(dataset, encoder)[:16]}.npy"
    return (folder or cache_folder()) / re.sub(r"[^\w.-]", "_", name)  # a captioner's file names the backbone


def read_table(path: Path, dataset: CaptionDataset, encoder: CNNEncoder) -> FeatureTable:
    """Open a stored table, memory-mapped.

    Raises:
        FeatureTableError: it is half written, damaged, or of another dataset or encoder.
    """
    cure = "delete it and it is built again"
    expected = _identity(dataset, encoder)
    try:
        identity = json.loads(path.with_suffix(".json").read_text())
        array = _map(path, "r")
    except (OSError, ValueError, RecursionError) as error:
        raise FeatureTableError(f"feature table {str(path)!r} is half written or damaged ({error}); {cure}") from error
    wrong = [name for name, value in expected.items() if not isinstance(identity, dict) or identity.get(name) != value]
    if wrong:
        found = identity.get(wrong[0]) if isinstance(identity, dict) else identity
        raise FeatureTableError(
            f"feature table {str(path)!r} is not of these images and this encoder: its {wrong[0]} is "
            f"{found!r}, expected {expected[wrong[0]]!r}; {cure}"
        )
    if list(array.shape) != expected["shape"] or array.dtype != np.float16 or not array.flags.c_contiguous:
        raise FeatureTableError(
            f"feature table {str(path)!r} holds {array.dtype} {array.shape}, "
            f"expected float16 {expected['shape']}; {cure}"
        )
    return FeatureTable(array, path)


def build_table(path: Path, dataset: CaptionDataset, encoder: CNNEncoder, progress: bool = True) -> None:
    """Encode every image of a split into ``path``, whole or not at all.

    The array is written beside its place and moved there when complete; the description that makes it valid comes last.
    """
    identity = _identity(dataset, encoder)
    path.with_suffix(".json").unlink(missing_ok=True)
    with atomic_path(path) as partial:
        array = np.lib.format.open_memmap(partial, "w+", np.float16, tuple(identity["shape"]))
        label = f"features of {dataset.name} {dataset.split} ({encoder.config.backbone})"
        with tqdm(total=len(dataset), desc=label, unit="image", disable=None if progress else True) as bar:
            for start in range(0, len(dataset), CHUNK):
                encoded = _encode(dataset, encoder, start, CHUNK)
                array[start : start + len(encoded)] = encoded
                bar.update(len(encoded))
        array.flush()
        del array
    with atomic_path(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(identity, indent=1))


def finish_features(table: FeatureTable, encoder: CNNEncoder, rows: range) -> FeatureTable:
    """Annotations of an encoder, in memory, of the first rows of a table of its frozen part."""
    starts = range(0, len(rows), CHUNK)
    chunks = (torch.from_numpy(table[rows[start : start + CHUNK]]).float() for start in starts)
    training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        finished = [encoder.finish(chunk.to(encoder.anchor.device)).half().cpu().numpy() for chunk in chunks]
    encoder.train(training)
    return FeatureTable(np.concatenate(finished))


def open_features(
    dataset: CaptionDataset, encoder: CNNEncoder, *, folder: Path | None = None, progress: bool = True
) -> FeatureTable:
    """The feature table of a split, built on first use.

    Procedural datasets are encoded row by row when looked at, for all processes that share ``folder``; where nothing
    can be written there, for each by itself, with a warning. Others are kept under ``folder``, named by their images
    and encoder, so that a stale table is never read; a damaged one is built again, with a warning. Of several processes
    that miss the same table one builds it, and the others wait.

    Args:
        dataset: the images.
        encoder: makes their annotations.
        folder: where tables are kept; else ``cache_folder()``.
        progress: whether to show a progress bar while building.
    """
    path = table_path(dataset, encoder, folder)
    if dataset.procedural:
        try:
            return ProceduralFeatures(dataset, encoder, path)
        except OSError as error:
            warnings.warn(f"features are not shared between processes: {error}", stacklevel=2)
            return ProceduralFeatures(dataset, encoder)
    try:
        return read_table(path, dataset, encoder)
    except FeatureTableError:
        pass  # none yet, or none whole
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):  # one process builds, the others wait and read
        if path.exists() or path.with_suffix(".json").exists():
            try:
                return read_table(path, dataset, encoder)
            except FeatureTableError as error:
                warnings.warn(f"{error} Building it again now.", stacklevel=2)
        sweep(path.parent, path.stem + ".*")
        build_table(path, dataset, encoder, progress)
        return read_table(path, dataset, encoder)
