"""Feature tables of images that are computed, not read: each row is encoded when somebody first looks at it.

Knows a dataset, an encoder and the file that processes share. It does not know tables of photographs.
"""

from __future__ import annotations

import copy
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from glimpse_env.core.atomic_files import atomic_path, sweep
from glimpse_env.datasets.base import CaptionDataset
from glimpse_env.features.table import FeatureTable, FeatureTableError, Half, map_array
from glimpse_env.models.encoders.cnn import CNNEncoder

SMALL_CHUNK = 8  # rows; fixed, so that a row's values never depend on which rows were asked for


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
                kept[:] = encode_rows(self._dataset, self._encoder, start, SMALL_CHUNK)
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
    found = _found(path, shape, dtype)
    if found is not None:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        found = _found(path, shape, dtype)  # another process may have made it meanwhile
        if found is not None:
            return found
        sweep(path.parent, path.name)  # what one that was killed here has left
        with atomic_path(path) as partial:
            np.lib.format.open_memmap(partial, "w+", dtype, shape).flush()
            with partial.open("r+b") as file:  # a hole that finds no room later would end the process
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        return np.asarray(map_array(path, "r+"))


def _found(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
    """The array of a file, if it is there and whole."""
    try:
        found = map_array(path, "r")  # "r+" would let a damaged header's shape grow the file
        if found.shape == shape and found.dtype == dtype and found.flags.c_contiguous:
            return np.asarray(map_array(path, "r+"))
    except FeatureTableError:
        pass
    return None


def _checksum(values: Half) -> int:
    return zlib.crc32(values.tobytes()) or 1  # 0 stands for none yet


def encode_rows(dataset: CaptionDataset, encoder: CNNEncoder, start: int, count: int) -> Half:
    """Annotations of ``count`` rows from ``start`` on, fewer at the split's end: (B, L, D)."""
    rows = range(start, min(start + count, len(dataset)))
    annotations: Half = encoder.encode([dataset.image(row) for row in rows]).half().cpu().numpy()
    return annotations
