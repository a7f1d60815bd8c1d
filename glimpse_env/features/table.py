"""Feature tables: the annotation vectors of all images of a split, in memory, memory-mapped, or read from shards."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.features.row_cache import LRURows
from glimpse_env.features.shards import UNREADABLE, Half, ShardError, Shards

CACHE_BYTES = 40 << 20  # of pinned rows, for each sharded table and thread
TRANSFER_ROWS = 64  # rows that are moved to a device together

# Errors of the system rather than of a file: the file itself may be fine.
_SYSTEM_ERRORS = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE}


class FeatureTableError(ValueError):
    """A feature table on disk is incomplete, damaged, or of another dataset or encoder."""


class FeatureTable:
    """Annotations (N, L, D), float16, of the N rows of a split.

    ``table[rows]`` gives those rows; a table is read-only, and one table may serve any number of environments.

    Args:
        array: (N, L, D), float16; usually memory-mapped.
        path: the file that ``array`` maps, if any; a pickle then holds the path instead of the values.

    Attributes:
        masks: which locations each row has, bool (N, L); None where every row has all.
        on_disk: whether each row is read from disk when it is needed, so that ``prefetch`` saves time.
    """

    on_disk = False
    masks: npt.NDArray[np.bool_] | None = None

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
        return self.shape[0]

    def prefetch(self, rows: npt.NDArray[np.int64]) -> None:
        """Announce rows (B,) that will be needed later. A table on disk starts reading them in the background."""

    def pin(self, rows: npt.NDArray[np.int64], device: torch.device) -> None:
        """Announce rows (B,) of episodes that start. A table on disk caches them in memory, as far as they fit.

        ``device`` is that of later calls of ``gather_tensor``.

        Raises:
            FeatureTableError: a file is damaged.
        """

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """Annotations of ``rows``: (L, D) for one row, (B, L, D) for B of them. A fresh array."""
        return self._array[rows].copy() if isinstance(rows, slice) else self._array[np.asarray(rows)]

    def gather(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """Annotations (B, D) of one location of each of B rows, as hard attention reads them. A fresh array."""
        _, num_locations, features = self.shape
        indices = np.asarray(rows) * num_locations + np.asarray(locations)
        vectors: Half = self._array.reshape(-1, features).take(indices, 0)  # twice as fast as two indices
        return vectors

    def gather_tensor(self, rows: npt.NDArray[np.int64], locations: npt.NDArray[Any], device: torch.device) -> Tensor:
        """``gather`` as a tensor (B, D), float16, on a device."""
        if self.is_resident(device):
            return self.to(device)[torch.from_numpy(rows).to(device), torch.from_numpy(locations).to(device)]
        return torch.from_numpy(self.gather(rows, locations)).to(device)

    def rows(self, rows: Tensor, device: torch.device) -> Tensor:
        """Annotations of ``rows`` (B,), int64, as a tensor (B, L, D), float16, on a device."""
        if self.is_resident(device):
            return self.to(device)[rows.to(device)]
        return torch.from_numpy(self[rows.cpu().numpy()]).to(device)

    def location_masks(self, rows: npt.NDArray[np.int64], device: torch.device | str = "cpu") -> Tensor | None:
        """Which locations ``rows`` (B,) have, bool (B, L), on a device; None where every row has all."""
        return None if self.masks is None else torch.from_numpy(self.masks[rows]).to(device)

    def is_resident(self, device: torch.device) -> bool:
        """Whether rows for a device are read from a copy of the whole table there (``to``)."""
        return device.type != "cpu"

    def to(self, device: torch.device) -> Tensor:
        """The whole table as one tensor (N, L, D), float16, on a device. All callers share it."""
        if device not in self._tensors:
            self._tensors[device] = torch.from_numpy(np.asarray(self)).to(device)
        return self._tensors[device]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its path, where it has one."""
        return *self._rebuild(), {"masks": self.masks}

    def _rebuild(self) -> tuple[Any, tuple[Any, ...]]:
        return (FeatureTable, (self._array,)) if self._file is None else (_mapped_table, (self._file,))

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureTable:
        """The same table: it is read-only."""
        return self

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole table."""
        return np.array(self._array, dtype=dtype, copy=copy)


def _mapped_table(path: Path) -> FeatureTable:
    return FeatureTable(map_array(path, "r"), path)


def map_array(path: Path, mode: Literal["r", "r+"]) -> npt.NDArray[Any]:
    """Memory-map the array of an ``.npy`` file; pickled arrays are refused.

    Raises:
        FeatureTableError: the file is missing, truncated, damaged or no array, or claims an impossible shape.
        OSError: the system cannot read it, as with missing permissions or too many open files.
    """
    try:
        return np.lib.format.open_memmap(path, mode)
    except (*UNREADABLE, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
            raise
        raise FeatureTableError(f"{str(path)!r} is no array ({error})") from error


class ShardedFeatures(FeatureTable):
    """A table that is not mapped into memory: each row is read from one of ``shards`` when it is needed.

    Pinned rows are cached in memory, up to ``CACHE_BYTES``. Reading raises an ``IndexError`` if a row does not exist,
    and a ``FeatureTableError`` if a file is missing or damaged.
    """

    on_disk = True

    def __init__(self, shards: Shards) -> None:
        super().__init__(np.empty((0, *shards.shape[1:]), np.float16))
        self.shards = shards
        self._cache = LRURows(shards.shape[0], shards.shape[1:], CACHE_BYTES)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, L, D)."""
        return self.shards.shape

    def prefetch(self, rows: npt.NDArray[np.int64]) -> None:
        """Start reading rows (B,) in the background. A damaged file is reported when one of its rows is needed."""
        self.shards.prefetch(rows, background=True)

    def pin(self, rows: npt.NDArray[np.int64], device: torch.device) -> None:
        """Cache rows (B,) in memory; the kernel is asked to read those that do not fit."""
        rows = self._checked(rows)
        with _table_errors():
            if not self.is_resident(device):
                rows = self._cache.load(rows, self._read)
            self.shards.prefetch(rows)

    def _read(self, array: Half, slots: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        self.shards.prefetch(rows)
        self.shards.read_into(array, slots, rows)

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """Annotations of ``rows``, from the cache or from disk. A fresh array."""
        indices = self._checked(np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows))
        slots = self._cache.find(indices.ravel())
        cached, missing = (slots >= 0).nonzero()[0], (slots < 0).nonzero()[0]
        annotations = np.empty((indices.size, *self.shape[1:]), np.float16)
        annotations[cached] = self._cache.array[slots[cached]]
        with _table_errors():
            self.shards.read_into(annotations, missing, indices.ravel()[missing])
        return annotations.reshape(*indices.shape, *self.shape[1:])

    def gather(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """Annotations (B, D) of one location of each of B rows, from the cache or from disk."""
        indices, locations = self._checked(np.asarray(rows)), np.asarray(locations)
        slots = self._cache.find(indices)
        missing = slots < 0
        with _table_errors():
            if missing.all():
                return self.shards.gather(indices, locations)
            vectors = FeatureTable(self._cache.array).gather(slots, locations)
            if missing.any():
                vectors[missing] = self.shards.gather(indices[missing], locations[missing])
            return vectors

    def _checked(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Row indices from 0 to N - 1, from integers that may be negative, or from a mask."""
        if rows.dtype.kind not in "iu":
            rows = np.arange(len(self))[rows]  # a mask, or what numpy refuses
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a table of {len(self)}")
        indices: npt.NDArray[np.int64] = np.where(rows < 0, rows + len(self), rows).astype(np.int64, copy=False)
        return indices

    def is_resident(self, device: torch.device) -> bool:
        """Whether the table is on a device, or fits: a GPU may give it half of its free memory."""
        if device in self._tensors:
            return True
        return device.type == "cuda" and 4 * int(np.prod(self.shape)) <= torch.cuda.mem_get_info(device)[0]

    def to(self, device: torch.device) -> Tensor:
        """The whole table as one tensor (N, L, D), float16, on a device, moved there in chunks of rows."""
        if device not in self._tensors:
            tensor = torch.empty(self.shape, dtype=torch.float16, device=device)
            for start in range(0, len(self), TRANSFER_ROWS):
                tensor[start : start + TRANSFER_ROWS] = torch.from_numpy(self[start : start + TRANSFER_ROWS])
            self._tensors[device] = tensor
        return self._tensors[device]

    def _rebuild(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickled as its files' paths."""
        return ShardedFeatures, (self.shards,)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole table, in memory."""
        return np.array(self[:], dtype=dtype)


@contextmanager
def _table_errors() -> Iterator[None]:
    """Raise a ``ShardError`` as a ``FeatureTableError`` that says what to do."""
    try:
        yield
    except ShardError as error:
        raise FeatureTableError(f"feature table: {error}; delete it and it is built again") from error
