"""Feature tables of procedural datasets: each image is encoded when its row is first read."""

from __future__ import annotations

import copy
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from glimpse_env.core.atomic_files import atomic_path, remove_stale
from glimpse_env.datasets.base import CaptionDataset, location_masks
from glimpse_env.features.shards import Half
from glimpse_env.features.table import FeatureTable, FeatureTableError, map_array
from glimpse_env.models.encoders.base import Encoder

SMALL_CHUNK = 8  # rows; fixed, so that a row's values never depend on which rows were read together


class ProceduralFeatures(FeatureTable):
    """A table whose rows are encoded when they are first read, in chunks of ``SMALL_CHUNK`` rows.

    With a file, processes share what they have encoded, also with later ones. A chunk counts as encoded when its
    checksum is right, so an interrupted write is encoded again.

    Args:
        dataset: the images.
        encoder: encodes them; a copy of it is kept.
        path: the shared file, created if it is missing; None to keep the rows in memory.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, dataset: CaptionDataset, encoder: Encoder, path: Path | None = None) -> None:
        shape = (len(dataset), encoder.num_locations, encoder.feature_dim)
        chunks = -(-len(dataset) // SMALL_CHUNK)
        if path is None:
            array, self._checksums = np.zeros(shape, np.float16), np.zeros(chunks, np.uint32)
        else:
            array = _open_shared(path, shape, np.float16)
            self._checksums = _open_shared(path.with_suffix(".sums.npy"), (chunks,), np.uint32)
        super().__init__(array)
        self._dataset, self._path = dataset, path
        self._encoder = copy.deepcopy(encoder)  # the file is of these weights, even if the encoder is trained further
        self._encoded = np.zeros(chunks, bool)
        self._complete = False

    def _rebuild(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickled without its values, which are in the file or can be encoded again."""
        return ProceduralFeatures, (self._dataset, self._encoder, self._path)

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """As ``FeatureTable``; rows are encoded now if they were not before."""
        self._encode(np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)])
        return super().__getitem__(rows)

    def gather(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """As ``FeatureTable``; rows are encoded now if they were not before."""
        self._encode(np.asarray(rows))
        return super().gather(rows, locations)

    def _encode(self, rows: npt.NDArray[np.int64]) -> None:
        if self._complete:
            return
        chunks = rows // SMALL_CHUNK
        for chunk in np.unique(chunks[~self._encoded[chunks]]).tolist():
            start = chunk * SMALL_CHUNK
            annotations = self._array[start : start + SMALL_CHUNK]
            if not self._checksums[chunk] or self._checksums[chunk] != _checksum(annotations):
                annotations[:] = encode_rows(self._dataset, self._encoder, start, SMALL_CHUNK)
                self._checksums[chunk] = _checksum(annotations)
            self._encoded[chunk] = True
            self._complete = bool(self._encoded.all())

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole table, every row encoded."""
        return np.array(self[:], dtype=dtype)


def _open_shared(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Map an array file that several processes read and write; it is created, full of zeros, if it is missing."""
    if (array := _map_complete(path, shape, dtype)) is not None:
        return array
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if (array := _map_complete(path, shape, dtype)) is not None:  # another process created it before the lock
            return array
        remove_stale(path.parent, path.name)  # of a process that was killed
        with atomic_path(path) as partial:
            np.lib.format.open_memmap(partial, "w+", dtype, shape).flush()
            with partial.open("r+b") as file:  # writing to a hole of a mapped file on a full disk would be fatal
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        return np.asarray(map_array(path, "r+"))


def _map_complete(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
    """The array of a file if it exists and has the right shape and type."""
    with suppress(FeatureTableError):
        array = map_array(path, "r")  # "r+" would let a damaged header's shape grow the file
        if array.shape == shape and array.dtype == dtype and array.flags.c_contiguous:
            return np.asarray(map_array(path, "r+"))
    return None


def _checksum(values: Half) -> int:
    return zlib.crc32(values.tobytes()) or 1  # 0 means that a chunk was not encoded yet


def encode_rows(dataset: CaptionDataset, encoder: Encoder, start: int, count: int) -> Half:
    """Annotations (B, L, D) of ``count`` rows from ``start`` on, fewer at the end of the split."""
    rows = range(start, min(start + count, len(dataset)))
    annotations: Half = encoder.encode([dataset.image(row) for row in rows]).half().cpu().numpy()
    masks = location_masks(dataset, encoder.num_locations, rows)
    if masks is not None:
        annotations[~masks] = 0
    return annotations
