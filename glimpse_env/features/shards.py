"""A large array in several files of rows, read row by row and never mapped: resident is what was asked for, no more.

Knows numpy's file format and rows. It does not know what the rows are of.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

Half = npt.NDArray[np.float16]
Integers = npt.NDArray[np.int64]

# What is raised for a file that is no array of numpy's own, or not there; a disk or a system in trouble is neither.
UNREADABLE = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    RecursionError,
    TokenError,
)

_ONE_AT_A_TIME = threading.Lock()  # for systems that cannot read at an offset


class ShardError(ValueError):
    """A file of rows is missing, cut off, or not what its description says."""


class Layout(NamedTuple):
    """How N rows lie in files: R in each, in their order, and what is left in the last.

    Attributes:
        rows: N.
        each: R.
    """

    rows: int
    each: int

    @classmethod
    def of(cls, shape: Sequence[int], limit: int, multiple: int) -> Layout:
        """The layout of a float16 array in files of at most ``limit`` bytes.

        Args:
            shape: (N, …).
            limit: bytes of a file, exceeded where ``multiple`` rows are more.
            multiple: R is one of it, or N.
        """
        rows, size = shape[0], 2 * int(np.prod(shape[1:]))
        if rows * size <= limit:
            return cls(rows, max(rows, 1))
        return cls(rows, min(rows, max(limit // size // multiple, 1) * multiple))

    @property
    def files(self) -> int:
        """Number of files, at least one."""
        return max(-(-self.rows // self.each), 1)

    def part(self, number: int) -> range:
        """The rows of a file."""
        return range(number * self.each, min((number + 1) * self.each, self.rows))

    def path(self, whole: Path, number: int) -> Path:
        """The file that holds a part of ``whole``: itself, where it is the only one."""
        if self.files == 1:
            return whole
        return whole.with_name(f"{whole.stem}-{number:05}-of-{self.files:05}{whole.suffix}")


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin a file of numpy's format, version 1.0, whose rows are written after, in float16."""
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


class _File:
    """A file that is open while somebody holds it."""

    def __init__(self, path: Path, begin: int) -> None:
        self.begin = begin  # of the first row
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.descriptor)
        if hasattr(os, "posix_fadvise"):  # rows are asked for in no order: nothing beside them is read
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def may_be_open() -> int:
    """How many files a table keeps open: half of what the system allows this process."""
    if resource is None:
        return 256
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if allowed == resource.RLIM_INFINITY else max(allowed // 2, 1)


class Shards:
    """Rows (L, D), float16, of an array (N, L, D) in files; each is opened when a row of it is first read.

    Of more files than may be open some are closed again.

    Args:
        whole: the path that the files are named by.
        layout: how many rows lie in each.
        shape: (N, L, D).
    """

    def __init__(self, whole: Path, layout: Layout, shape: tuple[int, int, int]) -> None:
        self.whole, self.layout, self.shape = whole, layout, shape
        self._files: dict[int, _File] = {}  # that are open
        self._begins: dict[int, int] = {}  # offset of the first row of each that was ever opened
        self._most = may_be_open()
        self._thread: ThreadPoolExecutor
        self._process = 0  # that the thread is of; 0 before the first

    @property
    def opened(self) -> int:
        """Number of files that are open."""
        return len(self._files)

    def read_into(self, array: Half, places: Integers, rows: Integers) -> None:
        """Write rows into an array.

        Args:
            array: (K, L, D), C-contiguous.
            places: (B,), each in [0, K).
            rows: (B,), each in [0, N), that go there.

        Raises:
            ShardError: a file is not what it should be; what was written until then stays.
        """
        self._fill(array, places, rows, np.zeros_like(rows))

    def at(self, rows: Integers, locations: Integers) -> Half:
        """One vector of each of B rows, (B, D), a fresh array.

        Args:
            rows: (B,), each in [0, N).
            locations: (B,), each in [0, L).

        Raises:
            ShardError: a file is not what it should be.
        """
        found = np.empty((len(rows), self.shape[2]), np.float16)
        self._fill(found, np.arange(len(rows)), rows, locations)
        return found

    def ahead(self, rows: Integers, aside: bool = False) -> None:
        """Let the kernel begin to read rows that will be asked for.

        Args:
            rows: (B,), each in [0, N).
            aside: say it in a thread of its own: where the disk is busy, the kernel lets who asks wait.

        Raises:
            ShardError: a file is not what it should be; aside, nobody is told before the row is read.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        if aside:
            if self._process != os.getpid():  # threads do not come along into a fork
                self._thread, self._process = ThreadPoolExecutor(1, "read-ahead"), os.getpid()
            self._thread.submit(self.ahead, rows)
            return
        size = self._size
        for number, place in zip(*self._places(rows), strict=True):
            file = self._open(number)
            os.posix_fadvise(file.descriptor, file.begin + place * size, size, os.POSIX_FADV_WILLNEED)

    @property
    def _size(self) -> int:
        """Bytes of a row."""
        return 2 * self.shape[1] * self.shape[2]

    def _places(self, rows: Integers) -> tuple[list[int], list[int]]:
        """The file of each row, and its place there."""
        numbers, places = np.divmod(rows, self.layout.each)
        return numbers.tolist(), places.tolist()

    def _fill(self, array: Half, into: Integers, rows: Integers, locations: Integers) -> None:
        if not len(rows):
            return
        memory, size, step = array.data.cast("B"), self._size, array[0].nbytes
        numbers, places = self._places(rows)
        starts, offsets = (step * into).tolist(), (2 * self.shape[2] * locations).tolist()
        for start, number, place, offset in zip(starts, numbers, places, offsets, strict=True):
            file = self._files.get(number) or self._open(number)
            view = memory[start : start + step]
            if _read_at(file.descriptor, view, file.begin + place * size + offset) != step:
                raise ShardError(f"{str(self.layout.path(self.whole, number))!r} was cut off while it was read")

    def whole_part(self, number: int) -> bool:
        """Whether a file is there, of the right shape and size."""
        try:
            self._check(number)
        except ShardError:
            return False
        return True

    def _check(self, number: int) -> int:
        """The offset of a file's first row."""
        path, expected = self.layout.path(self.whole, number), (len(self.layout.part(number)), *self.shape[1:])
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"version {version} of the format")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                begin, length = file.tell(), os.fstat(file.fileno()).st_size
        except UNREADABLE as error:
            raise ShardError(f"{str(path)!r} is no array ({str(error).partition(chr(10))[0]})") from error
        if shape != expected or dtype != np.float16 or fortran:
            raise ShardError(f"{str(path)!r} holds {dtype} {shape}, expected float16 {expected}")
        if length != begin + expected[0] * self._size:
            raise ShardError(f"{str(path)!r} has {length} bytes, expected {begin + expected[0] * self._size}")
        return begin

    def _open(self, number: int) -> _File:
        """A file; where two threads open one twice, what nobody holds any more is closed."""
        file = self._files.get(number)
        if file is None:
            if number not in self._begins:
                self._begins[number] = self._check(number)
            file = _File(self.layout.path(self.whole, number), self._begins[number])
            if len(self._files) >= self._most:
                self._files.popitem()  # any: rows are asked for in no order; who reads from it holds it until then
            self._files[number] = file
        return file


def _read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Fill a view from an offset of a file; returns the bytes that were there."""
    done = 0
    while done < len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [view[done:]], offset + done)
        else:
            with _ONE_AT_A_TIME:
                os.lseek(descriptor, offset + done, os.SEEK_SET)
                part = os.read(descriptor, len(view) - done)
            count = len(part)
            view[done : done + count] = part
        if not count:
            break
        done += count
    return done
