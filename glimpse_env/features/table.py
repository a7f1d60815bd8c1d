"""Annotation vectors of a split as a table of rows: in memory, mapped, or read from its files row by row.

Knows arrays and files of them. It does not know images, encoders, nor how a table is built.
"""

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

from glimpse_env.features.row_cache import RecentRows
from glimpse_env.features.shards import UNREADABLE, Layout, ShardError, Shards

ROOM = 40 << 20  # bytes of memory, for each table on disk and thread, of rows that captions are under way of
PART = 64  # rows that are carried to a device together

Half = npt.NDArray[np.float16]

# Of the system, and not of what a file holds, which may be as it should.
_TROUBLE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE}


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

    @property
    def on_disk(self) -> bool:
        """Whether rows are read from disk when they are asked for, so that it helps to say which come ``ahead``."""
        return False

    def ahead(self, rows: npt.NDArray[np.int64]) -> None:
        """Say which rows (B,) will be asked for later, so that a table on disk can let them be read meanwhile."""

    def keep(self, rows: npt.NDArray[np.int64], device: torch.device) -> None:
        """Say of which rows (B,) captions are under way, so that a table on disk can keep them at hand.

        Args:
            rows: (B,).
            device: where they are ``glimpsed``.

        Raises:
            FeatureTableError: a file is missing or damaged.
        """

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
    return FeatureTable(map_array(path, "r"), path)


def map_array(path: Path, mode: Literal["r", "r+"]) -> npt.NDArray[Any]:
    """An array of a file, memory-mapped; never a pickle.

    Raises:
        FeatureTableError: the file is missing, cut off, damaged or no array, or claims an impossible shape.
        OSError: it cannot be read for a reason that lies elsewhere.
    """
    try:
        return np.lib.format.open_memmap(path, mode)
    except (*UNREADABLE, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in _TROUBLE:
            raise
        raise FeatureTableError(f"{str(path)!r} is no array ({error})") from error


class ShardedFeatures(FeatureTable):
    """A table larger than memory is meant to hold: rows are read from their files when they are asked for.

    Those that captions are under way of are kept in memory, as far as there is room (``ROOM``).

    Args:
        shards: the files.
    """

    def __init__(self, shards: Shards) -> None:
        super().__init__(np.empty((0, *shards.shape[1:]), np.float16))
        self.shards = shards
        self._recent = RecentRows(shards.shape[0], shards.shape[1:], ROOM)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, L, D)."""
        return self.shards.shape

    def __len__(self) -> int:
        return self.shards.shape[0]

    @property
    def on_disk(self) -> bool:
        """Yes."""
        return True

    def ahead(self, rows: npt.NDArray[np.int64]) -> None:
        """Let rows (B,) be read meanwhile; of a damaged file nobody is told before they are asked for."""
        self.shards.ahead(rows, aside=True)

    def keep(self, rows: npt.NDArray[np.int64], device: torch.device) -> None:
        """Read rows (B,) that are not at hand; those that there is no room for the system may have ready.

        Raises:
            IndexError: there is no such row.
            FeatureTableError: a file is missing or damaged.
        """
        left = self._checked(rows)
        with _damage_named():
            if not self._whole_on(device):
                left = self._recent.keep(left, self._read)
            self.shards.ahead(left)

    def _read(self, array: Half, places: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        self.shards.ahead(rows)
        self.shards.read_into(array, places, rows)

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """Annotations of ``rows``, read now, but for those that are kept. A fresh array.

        Raises:
            IndexError: there is no such row.
            FeatureTableError: a file is missing or damaged.
        """
        wanted = self._checked(np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows))
        places = self._recent.find(wanted.ravel())
        kept, absent = (places >= 0).nonzero()[0], (places < 0).nonzero()[0]
        found = np.empty((wanted.size, *self.shape[1:]), np.float16)
        found[kept] = self._recent.array[places[kept]]
        with _damage_named():
            self.shards.read_into(found, absent, wanted.ravel()[absent])
        return found.reshape(*wanted.shape, *self.shape[1:])

    def at(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """Annotations (B, D) of one location of each of B rows, read now, but for those that are kept.

        Raises:
            IndexError: there is no such row.
            FeatureTableError: a file is missing or damaged.
        """
        wanted, looked = self._checked(np.asarray(rows)), np.asarray(locations)
        places = self._recent.find(wanted)
        absent = places < 0
        with _damage_named():
            if absent.all():
                return self.shards.at(wanted, looked)
            found = FeatureTable(self._recent.array).at(places, looked)
            if absent.any():
                found[absent] = self.shards.at(wanted[absent], looked[absent])
            return found

    def _checked(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Rows counted from the first.

        Raises:
            IndexError: there is no such row.
        """
        if rows.dtype.kind not in "iu":
            rows = np.arange(len(self))[rows]  # a mask, or what numpy refuses
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a table of {len(self)}")
        counted: npt.NDArray[np.int64] = np.where(rows < 0, rows + len(self), rows).astype(np.int64, copy=False)
        return counted

    def glimpsed(self, rows: npt.NDArray[np.int64], locations: npt.NDArray[Any], device: torch.device) -> Tensor:
        """``at`` as a tensor (B, D), float16, on a device."""
        if self._whole_on(device):
            return super().glimpsed(rows, locations, device)
        return torch.from_numpy(self.at(rows, locations)).to(device)

    def rows(self, rows: Tensor, device: torch.device) -> Tensor:
        """Annotations of ``rows`` (B,), int64, as a tensor (B, L, D), float16, on a device."""
        if self._whole_on(device):
            return super().rows(rows, device)
        return torch.from_numpy(self[rows.cpu().numpy()]).to(device)

    def _whole_on(self, device: torch.device) -> bool:
        """Whether the whole table is on a device, or is to be: on a GPU of whose free memory it takes half at most."""
        if device in self._tensors:
            return True
        return device.type == "cuda" and 4 * int(np.prod(self.shape)) <= torch.cuda.mem_get_info(device)[0]

    def on(self, device: torch.device) -> Tensor:
        """The whole table as one tensor (N, L, D), float16, on a device, carried there part by part."""
        if device not in self._tensors:
            whole = torch.empty(self.shape, dtype=torch.float16, device=device)
            for start in range(0, len(self), PART):
                whole[start : start + PART] = torch.from_numpy(self[start : start + PART])
            self._tensors[device] = whole
        return self._tensors[device]

    def __reduce__(self) -> tuple[Any, ...]:
        """By its files."""
        return sharded, (self.shards.whole, self.shards.layout, self.shape)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole table, in memory."""
        return np.array(self[:], dtype=dtype)


def sharded(whole: Path, layout: Layout, shape: tuple[int, int, int]) -> ShardedFeatures:
    """The table of some files; they are opened when their rows are read."""
    return ShardedFeatures(Shards(whole, layout, shape))


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except ShardError as error:
        raise FeatureTableError(f"feature table: {error}; delete it and it is built again") from error
