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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from glimpse_env.datasets.base import CaptionDataset
from glimpse_env.encoder import CNNEncoder
from glimpse_env.files import atomic_path, sweep
from glimpse_env.shards import Layout, ShardError, Shards, write_header

FORMAT = "glimpse-features-1"
HELPS = 0.2  # seconds after which one that waits for a table looks whether it can build a part
CHUNK = 64  # rows of photographs encoded together
SHARD_BYTES = 1 << 30  # of a file; larger tables are several, which are read row by row and not mapped
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

    @property
    def on_disk(self) -> bool:
        """Whether every row is read from disk when it is asked for, so that it helps to say which come ``ahead``."""
        return False

    def ahead(self, rows: npt.NDArray[np.int64], aside: bool = False) -> None:
        """Say which rows (B,) will be asked for, so that a table on disk can let them be read together.

        Args:
            rows: (B,).
            aside: whether that is later, and nothing should wait for it now.
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


class ShardedFeatures(FeatureTable):
    """A table larger than memory is meant to hold: rows are read from their files when they are asked for.

    Args:
        shards: the files.
    """

    def __init__(self, shards: Shards) -> None:
        super().__init__(np.empty((0, *shards.shape[1:]), np.float16))
        self.shards = shards

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

    def ahead(self, rows: npt.NDArray[np.int64], aside: bool = False) -> None:
        """Let rows (B,) be read together, or meanwhile."""
        with _damage_named():
            self.shards.ahead(rows, aside)

    def __getitem__(self, rows: npt.ArrayLike | slice) -> Half:
        """Annotations of ``rows``, read now.

        Raises:
            IndexError: there is no such row.
            FeatureTableError: a file is missing or damaged.
        """
        wanted = self._checked(np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows))
        with _damage_named():
            return self.shards.read(wanted.ravel()).reshape(*wanted.shape, *self.shape[1:])

    def at(self, rows: npt.ArrayLike, locations: npt.ArrayLike) -> Half:
        """Annotations (B, D) of one location of each of B rows, read now.

        Raises:
            IndexError: there is no such row.
            FeatureTableError: a file is missing or damaged.
        """
        with _damage_named():
            return self.shards.at(self._checked(np.asarray(rows)), np.asarray(locations))

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
        if device in self._tensors or self._fits(device):
            return super().glimpsed(rows, locations, device)
        return torch.from_numpy(self.at(rows, locations)).to(device)

    def rows(self, rows: Tensor, device: torch.device) -> Tensor:
        """Annotations of ``rows`` (B,), int64, as a tensor (B, L, D), float16, on a device."""
        if device in self._tensors or self._fits(device):
            return super().rows(rows, device)
        return torch.from_numpy(self[rows.cpu().numpy()]).to(device)

    def _fits(self, device: torch.device) -> bool:
        """Whether the whole table takes at most half of what is free on a GPU; elsewhere rows are read one by one."""
        return device.type == "cuda" and 4 * int(np.prod(self.shape)) <= torch.cuda.mem_get_info(device)[0]

    def on(self, device: torch.device) -> Tensor:
        """The whole table as one tensor (N, L, D), float16, on a device, carried there part by part."""
        if device not in self._tensors:
            whole = torch.empty(self.shape, dtype=torch.float16, device=device)
            for start in range(0, len(self), CHUNK):
                whole[start : start + CHUNK] = torch.from_numpy(self[start : start + CHUNK])
            self._tensors[device] = whole
        return self._tensors[device]

    def __reduce__(self) -> tuple[Any, ...]:
        """By its files."""
        return _sharded, (self.shards.whole, self.shards.layout, self.shape)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The whole table, in memory."""
        return np.array(self[:], dtype=dtype)


def _sharded(whole: Path, layout: Layout, shape: tuple[int, int, int]) -> ShardedFeatures:
    return ShardedFeatures(Shards(whole, layout, shape))


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except ShardError as error:
        raise FeatureTableError(f"feature table: {error}; delete it and it is built again") from error


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


def read_table(
    path: Path, dataset: CaptionDataset, encoder: CNNEncoder, *, shard_bytes: int = SHARD_BYTES
) -> FeatureTable:
    """Open a stored table: memory-mapped, or to be read row by row where it is in parts, or larger than a part may be.

    Args:
        path: of the table; its parts are named by it.
        dataset: the images it must be of.
        encoder: that it must be of.
        shard_bytes: of the largest file that is mapped.

    Raises:
        FeatureTableError: it is half written, damaged, or of another dataset or encoder.
    """
    cure = "delete it and it is built again"
    expected = _identity(dataset, encoder)
    try:
        identity = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise FeatureTableError(f"feature table {str(path)!r} is half written or damaged ({error}); {cure}") from error
    wrong = [name for name, value in expected.items() if not isinstance(identity, dict) or identity.get(name) != value]
    if wrong:
        found = identity.get(wrong[0]) if isinstance(identity, dict) else identity
        raise FeatureTableError(
            f"feature table {str(path)!r} is not of these images and this encoder: its {wrong[0]} is "
            f"{found!r}, expected {expected[wrong[0]]!r}; {cure}"
        )
    rows, locations, features = expected["shape"]
    whole = Layout(rows, max(rows, 1))
    try:
        layout = _described_layout(path, identity, rows) if "shard_bytes" in identity else whole
        if layout.files > 1 or 2 * rows * locations * features > shard_bytes:
            return _sharded(path, layout, (rows, locations, features))
        array = _map(path, "r")
    except FeatureTableError as error:
        raise FeatureTableError(f"feature table {str(path)!r} is half written or damaged ({error}); {cure}") from error
    if list(array.shape) != expected["shape"] or array.dtype != np.float16 or not array.flags.c_contiguous:
        raise FeatureTableError(
            f"feature table {str(path)!r} holds {array.dtype} {array.shape}, "
            f"expected float16 {expected['shape']}; {cure}"
        )
    return FeatureTable(array, path)


def _described_layout(path: Path, identity: dict[str, Any], rows: int) -> Layout:
    """The layout of a table in parts, each there at its full size; none of them is opened.

    Raises:
        FeatureTableError: a part is missing or cut off, or the description is damaged.
    """
    sizes, each = identity["shard_bytes"], identity.get("shard_rows")
    if not isinstance(each, int) or each < 1 or not isinstance(sizes, list):
        raise FeatureTableError(f"its description holds shard_rows {each!r} and shard_bytes {sizes!r}")
    layout = Layout(rows, each)
    for number in range(layout.files):
        part = layout.path(path, number)
        found = part.stat().st_size if part.is_file() else 0
        if number >= len(sizes) or found != sizes[number]:
            raise FeatureTableError(f"its part {str(part)!r} has {found} bytes")
    return layout


def build_table(
    path: Path,
    dataset: CaptionDataset,
    encoder: CNNEncoder,
    progress: bool = True,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Encode every image of a split into ``path``, or into several files named by it where one would be too large.

    A file is written beside its place and moved there when complete; the description that makes the table valid comes
    last. Of a build that ended in between, whole parts are kept.

    Args:
        path: of the table.
        dataset: the images.
        encoder: makes their annotations.
        progress: whether to show a progress bar.
        shard_bytes: of a file, at most.
    """
    identity = _identity(dataset, encoder)
    path.with_suffix(".json").unlink(missing_ok=True)
    layout = Layout.of(identity["shape"], shard_bytes, CHUNK)
    label = f"features of {dataset.name} {dataset.split} ({encoder.config.backbone})"
    with tqdm(total=len(dataset), desc=label, unit="image", disable=None if progress else True) as bar:
        if layout.files == 1:
            build_shard(path, dataset, encoder, layout.part(0), bar)
        else:
            plan_shards(path, identity, layout)
            build_shards(path, dataset, encoder, layout, bar)
    describe_table(path, identity, layout)


def _planned(path: Path, identity: dict[str, Any], layout: Layout) -> bool:
    """Whether the parts of just this table are being built, or were when the build ended."""
    try:
        planned: bool = json.loads(path.with_suffix(".plan.json").read_text()) == {
            **identity,
            "shard_rows": layout.each,
        }
    except (OSError, ValueError, RecursionError):
        return False
    return planned


def plan_shards(path: Path, identity: dict[str, Any], layout: Layout) -> None:
    """Begin to build a table in parts; those that an earlier build of the same table has left whole are kept."""
    if _planned(path, identity, layout):
        return
    for stale in path.parent.glob(f"{path.stem}-?????-of-?????{path.suffix}"):
        stale.unlink()
    with atomic_path(path.with_suffix(".plan.json")) as partial:
        partial.write_text(json.dumps({**identity, "shard_rows": layout.each}, indent=1))


def build_shards(
    path: Path, dataset: CaptionDataset, encoder: CNNEncoder, layout: Layout, bar: tqdm | None = None
) -> None:
    """Build the parts that are missing, each under a lock of its own: any number of processes may do so at once.

    Args:
        path: of the table, whose parts have been planned.
        dataset: the images.
        encoder: makes their annotations.
        layout: of the parts.
        bar: told of every image, whoever has encoded it; none for one that helps, and leaves what others are at.
    """
    shape = (len(dataset), encoder.config.num_locations, encoder.config.feature_dim)
    shards = Shards(path, layout, shape)
    left = list(range(layout.files))
    for patient in (False, True) if bar is not None else (False,):
        for number in left.copy():
            part = layout.path(path, number)
            try:
                with FileLock(part.with_name(f".{part.stem}.lock")).acquire(blocking=patient):
                    if shards.whole_part(number):
                        if bar is not None:
                            bar.update(len(layout.part(number)))
                    else:
                        sweep(part.parent, part.name)  # what one that was killed here has left
                        build_shard(part, dataset, encoder, layout.part(number), bar)
                left.remove(number)
            except Timeout:  # another process is at it
                continue


def build_shard(path: Path, dataset: CaptionDataset, encoder: CNNEncoder, rows: range, bar: tqdm | None = None) -> None:
    """Encode some rows of a split into a file, whole or not at all; its values do not depend on other rows.

    Args:
        path: the file.
        dataset: the images.
        encoder: makes their annotations.
        rows: to encode.
        bar: told of every image.
    """
    shape = (len(rows), encoder.config.num_locations, encoder.config.feature_dim)
    with atomic_path(path) as partial, partial.open("wb") as file:
        write_header(file, shape)
        for start in range(rows.start, rows.stop, CHUNK):
            encoded = _encode(dataset, encoder, start, min(CHUNK, rows.stop - start))
            file.write(np.ascontiguousarray(encoded).data)
            if bar is not None:
                bar.update(len(encoded))


def describe_table(path: Path, identity: dict[str, Any], layout: Layout) -> None:
    """Write the description that makes a table valid, when all its files are there."""
    described = dict(identity)
    if layout.files > 1:
        described["shard_rows"] = layout.each
        described["shard_bytes"] = [layout.path(path, number).stat().st_size for number in range(layout.files)]
    with atomic_path(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(described, indent=1))
    path.with_suffix(".plan.json").unlink(missing_ok=True)
    for lock in path.parent.glob(f".{path.stem}-*.lock"):  # of the parts: nobody builds them any more
        lock.unlink(missing_ok=True)


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


@contextmanager
def _waiting(path: Path, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; while another process holds it, do something useful now and then."""
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=HELPS)
        except Timeout:
            meanwhile()
    try:
        yield
    finally:
        lock.release()


def open_features(
    dataset: CaptionDataset,
    encoder: CNNEncoder,
    *,
    folder: Path | None = None,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> FeatureTable:
    """The feature table of a split, built on first use.

    Procedural datasets are encoded row by row when looked at, for all processes that share ``folder``; where nothing
    can be written there, for each by itself, with a warning. Others are kept under ``folder``, named by their images
    and encoder, so that a stale table is never read; a damaged one is built again, with a warning. Of several processes
    that miss the same table one builds it, and the others wait; a table of more than ``shard_bytes`` is kept in parts,
    which they build together, each a part, and which are read row by row. What whole parts there are is kept when a
    build is cut off.

    Args:
        dataset: the images.
        encoder: makes their annotations.
        folder: where tables are kept; else ``cache_folder()``.
        progress: whether to show a progress bar while building.
        shard_bytes: of a file of the table, at most.
    """
    path = table_path(dataset, encoder, folder)
    if dataset.procedural:
        try:
            return ProceduralFeatures(dataset, encoder, path)
        except OSError as error:
            warnings.warn(f"features are not shared between processes: {error}", stacklevel=2)
            return ProceduralFeatures(dataset, encoder)
    try:
        return read_table(path, dataset, encoder, shard_bytes=shard_bytes)
    except FeatureTableError:
        pass  # none yet, or none whole
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = Layout.of(_identity(dataset, encoder)["shape"], shard_bytes, CHUNK)

    def help_out() -> None:
        if layout.files > 1 and _planned(path, _identity(dataset, encoder), layout):
            build_shards(path, dataset, encoder, layout)

    with _waiting(path.with_name(f".{path.stem}.lock"), help_out):  # one process builds, the others help, and read
        if path.exists() or path.with_suffix(".json").exists():
            try:
                return read_table(path, dataset, encoder, shard_bytes=shard_bytes)
            except FeatureTableError as error:
                warnings.warn(f"{error} Building it again now.", stacklevel=2)
        sweep(path.parent, path.stem + ".*")
        build_table(path, dataset, encoder, progress, shard_bytes=shard_bytes)
        return read_table(path, dataset, encoder, shard_bytes=shard_bytes)
