"""A float16 array stored as rows in one or several ``.npy`` files, read row by row.

The files are never memory-mapped, so that only rows that were asked for take memory.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from glimpse_env.core.arrays import Integers

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

Half = npt.NDArray[np.float16]

# What reading a missing or malformed array file raises; errors of the disk or the system are not among them.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_MALFORMED = (EOFError, ValueError, TypeError, SyntaxError, OverflowError, RecursionError, TokenError)
UNREADABLE = (*_MISSING, *_MALFORMED)

_SEEK_LOCK = threading.Lock()  # for systems that cannot read at an offset


class ShardError(ValueError):
    """A file of rows is missing, truncated, or does not match its description."""


class Layout(NamedTuple):
    """How N rows are split into files of R consecutive rows; the last file has the rest."""

    rows: int  # N
    rows_per_file: int  # R

    @classmethod
    def for_shape(cls, shape: Sequence[int], limit: int, multiple: int) -> Layout:
        """The layout of a float16 array (N, …) in files of at most ``limit`` bytes, or of ``multiple`` rows.

        R is a multiple of ``multiple``, unless one file holds all N rows.
        """
        rows, size = shape[0], 2 * int(np.prod(shape[1:]))
        if rows * size <= limit:
            return cls(rows, max(rows, 1))
        return cls(rows, min(rows, max(limit // size // multiple, 1) * multiple))

    @property
    def files(self) -> int:
        """Number of files, at least one."""
        return max(-(-self.rows // self.rows_per_file), 1)

    def file_rows(self, number: int) -> range:
        """The rows in file ``number``."""
        return range(number * self.rows_per_file, min((number + 1) * self.rows_per_file, self.rows))

    def path(self, path: Path, number: int) -> Path:
        """The path of file ``number`` of the array at ``path``; a single file is at ``path`` itself."""
        return path if self.files == 1 else path.with_name(f"{path.stem}-{number:05}-of-{self.files:05}{path.suffix}")


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a float16 array, ``.npy`` version 1.0; the caller writes the rows after it."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


class _OpenFile:
    """A file descriptor that is closed with the last reference to this object."""

    def __init__(self, path: Path, data_offset: int) -> None:
        self.data_offset = data_offset  # of the first row
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.descriptor)
        if hasattr(os, "posix_fadvise"):  # access is random: the kernel need not read ahead
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def max_open_files() -> int:
    """How many files a table may keep open: half of this process's limit."""
    if resource is None:
        return 256
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else max(limit // 2, 1)


class Shards:
    """Rows (L, D), float16, of an array (N, L, D) in files. A file is opened when one of its rows is first read.

    Above ``max_open_files()`` open files, one is closed for each that is opened. ``layout`` derives the paths of the
    files from ``path``. Whatever reads a row raises a ``ShardError`` if its file is missing or damaged.
    """

    def __init__(self, path: Path, layout: Layout, shape: tuple[int, int, int]) -> None:
        self.path, self.layout, self.shape = path, layout, shape
        self._files: dict[int, _OpenFile] = {}
        self._data_offsets: dict[int, int] = {}  # of files that were opened before
        self._max_open = max_open_files()
        self._prefetcher: ThreadPoolExecutor
        self._prefetcher_process = 0  # process id of the prefetch thread; 0 before the first

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without its open files."""
        return Shards, (self.path, self.layout, self.shape)

    def read_into(self, array: Half, slots: Integers, rows: Integers) -> None:
        """Read ``rows`` (B,) into ``array[slots]``, C-contiguous (K, L, D). After an error some may be written."""
        self._fill(array, slots, rows, np.zeros_like(rows))

    def gather(self, rows: Integers, locations: Integers) -> Half:
        """Read the vector of one of ``locations`` (B,) of each of ``rows`` (B,): (B, D), a fresh array."""
        vectors = np.empty((len(rows), self.shape[2]), np.float16)
        self._fill(vectors, np.arange(len(rows)), rows, locations)
        return vectors

    def prefetch(self, rows: Integers, background: bool = False) -> None:
        """Ask the kernel to start reading rows (B,) that will be needed.

        In the background a thread asks, as on a busy disk the kernel makes the caller wait, and nothing is raised.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        if background:
            if self._prefetcher_process != os.getpid():  # a fork has no threads of its parent
                self._prefetcher, self._prefetcher_process = ThreadPoolExecutor(1, "read-ahead"), os.getpid()
            self._prefetcher.submit(self.prefetch, rows)
            return
        size = self._row_bytes
        for number, index in zip(*self._locate(rows), strict=True):
            file = self._open(number)
            os.posix_fadvise(file.descriptor, file.data_offset + index * size, size, os.POSIX_FADV_WILLNEED)

    @property
    def _row_bytes(self) -> int:
        return 2 * self.shape[1] * self.shape[2]

    def _locate(self, rows: Integers) -> tuple[list[int], list[int]]:
        """The file of each row, and the row's index in that file."""
        numbers, indices = np.divmod(rows, self.layout.rows_per_file)
        return numbers.tolist(), indices.tolist()

    def _fill(self, array: Half, slots: Integers, rows: Integers, locations: Integers) -> None:
        """Read into each of ``array[slots]`` as many bytes as it has, from ``locations`` of ``rows`` on."""
        if not len(rows):
            return
        memory, size, step = array.data.cast("B"), self._row_bytes, array[0].nbytes
        numbers, indices = self._locate(rows)
        starts, offsets = (step * slots).tolist(), (2 * self.shape[2] * locations).tolist()
        for start, number, index, offset in zip(starts, numbers, indices, offsets, strict=True):
            file = self._files.get(number) or self._open(number)
            view = memory[start : start + step]
            if _read_at(file.descriptor, view, file.data_offset + index * size + offset) != step:
                raise ShardError(f"{str(self.layout.path(self.path, number))!r} was cut off while it was read")

    def is_complete(self, number: int) -> bool:
        """Whether file ``number`` exists and has the right shape and size."""
        try:
            self._check(number)
        except ShardError:
            return False
        return True

    def _check(self, number: int) -> int:
        """Check a file's header and size; returns the offset of its first row."""
        path, expected = self.layout.path(self.path, number), (len(self.layout.file_rows(number)), *self.shape[1:])
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"version {version} of the format")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                data_offset, length = file.tell(), os.fstat(file.fileno()).st_size
        except UNREADABLE as error:
            raise ShardError(f"{str(path)!r} is no array ({str(error).partition(chr(10))[0]})") from error
        if shape != expected or dtype != np.float16 or fortran:
            raise ShardError(f"{str(path)!r} holds {dtype} {shape}, expected float16 {expected}")
        expected_length = data_offset + expected[0] * self._row_bytes
        if length != expected_length:
            raise ShardError(f"{str(path)!r} has {length} bytes, expected {expected_length}")
        return data_offset

    def _open(self, number: int) -> _OpenFile:
        """An open file. Where two threads open the same one, the first is closed when its reader is done."""
        file = self._files.get(number)
        if file is None:
            if number not in self._data_offsets:
                self._data_offsets[number] = self._check(number)
            file = _OpenFile(self.layout.path(self.path, number), self._data_offsets[number])
            if len(self._files) >= self._max_open:
                self._files.popitem()  # any, as access is random; a thread that reads from it still holds it open
            self._files[number] = file
        return file


def _read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill a view from an offset of a file; returns the number of bytes read, fewer at the end of the file."""
    done = 0
    while done < len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [view[done:]], offset + done)
        else:
            with _SEEK_LOCK:
                os.lseek(descriptor, offset + done, os.SEEK_SET)
                content = os.read(descriptor, len(view) - done)
            count = len(content)
            view[done : done + count] = content
        if not count:
            break
        done += count
    return done
