"""Open the feature table of a split: read it from the cache folder, or encode all images and store it there first."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from glimpse_env.core.atomic_files import atomic_path, remove_stale
from glimpse_env.datasets.base import CaptionDataset, location_masks
from glimpse_env.features.lazy_table import ProceduralFeatures, encode_rows
from glimpse_env.features.shards import UNREADABLE, Layout, Shards, write_header
from glimpse_env.features.table import FeatureTable, FeatureTableError, ShardedFeatures, map_array
from glimpse_env.models.encoders.base import Encoder
from glimpse_env.models.encoders.cnn import CNNEncoder

FORMAT = "glimpse-features-1"
POLL_SECONDS = 0.2  # between two looks of a process that waits for a table whether it can build a shard
CHUNK = 64  # rows of photographs encoded together
SHARD_BYTES = 1 << 30  # largest file of a table; larger tables are sharded, and read row by row instead of mapped


def cache_folder() -> Path:
    """The folder of the tables: ``$GLIMPSE_CACHE``, else ``~/.cache/glimpse_env``."""
    return Path(os.environ.get("GLIMPSE_CACHE") or "~/.cache/glimpse_env").expanduser()


def _identity(dataset: CaptionDataset, encoder: Encoder) -> dict[str, Any]:
    device, masks = encoder.device.type, location_masks(dataset, encoder.num_locations)
    key = [FORMAT, dataset.fingerprint(), encoder.fingerprint()]
    key += [device] if device != "cpu" else []  # others round differently
    key += [] if masks is None else [hashlib.sha256(masks.tobytes()).hexdigest()]  # what is masked is stored as zeros
    return {
        "format": FORMAT,
        "key": hashlib.sha256("\n".join(key).encode()).hexdigest(),
        "dataset": dataset.name,
        "split": dataset.split,
        "encoder": encoder.name,
        "shape": [len(dataset), encoder.num_locations, encoder.feature_dim],
    }


def table_path(dataset: CaptionDataset, encoder: Encoder, folder: Path | None = None) -> Path:
    """The path of a table; its name has a hash of the images, their masks and the encoder's weights."""
    name = "{dataset}-{split}-{encoder}-{key:.16}.npy".format_map(_identity(dataset, encoder))
    return (folder or cache_folder()) / re.sub(r"[^\w.-]", "_", name)  # the encoder's name comes from a file


def read_table(
    path: Path, dataset: CaptionDataset, encoder: Encoder, *, shard_bytes: int = SHARD_BYTES
) -> FeatureTable:
    """Open a stored table: memory-mapped, or read row by row if it is sharded or larger than ``shard_bytes``.

    Raises:
        FeatureTableError: the table is missing, incomplete, damaged, or of another dataset or encoder.
        OSError: the system cannot read it.
    """
    cure = "delete it and it is built again"
    expected = _identity(dataset, encoder)
    try:
        identity = json.loads(path.with_suffix(".json").read_text())
    except UNREADABLE as error:
        raise FeatureTableError(f"feature table {str(path)!r} is half written or damaged ({error}); {cure}") from error
    wrong = [name for name, value in expected.items() if not isinstance(identity, dict) or identity.get(name) != value]
    if wrong:
        stored = identity.get(wrong[0]) if isinstance(identity, dict) else identity
        raise FeatureTableError(
            f"feature table {str(path)!r} is not of these images and this encoder: its {wrong[0]} is "
            f"{stored!r}, expected {expected[wrong[0]]!r}; {cure}"
        )
    rows, locations, features = expected["shape"]
    try:
        layout = _stored_layout(path, identity, rows) if "shard_bytes" in identity else Layout(rows, max(rows, 1))
        if layout.files > 1 or 2 * rows * locations * features > shard_bytes:
            return ShardedFeatures(Shards(path, layout, (rows, locations, features)))
        array = map_array(path, "r")
    except FeatureTableError as error:
        raise FeatureTableError(f"feature table {str(path)!r} is half written or damaged ({error}); {cure}") from error
    if list(array.shape) != expected["shape"] or array.dtype != np.float16 or not array.flags.c_contiguous:
        raise FeatureTableError(
            f"feature table {str(path)!r} holds {array.dtype} {array.shape}, "
            f"expected float16 {expected['shape']}; {cure}"
        )
    return FeatureTable(array, path)


def _stored_layout(path: Path, identity: dict[str, Any], rows: int) -> Layout:
    """The layout of a sharded table. The size of every shard is checked, but none is opened."""
    sizes, rows_per_file = identity["shard_bytes"], identity.get("shard_rows")
    if not isinstance(rows_per_file, int) or rows_per_file < 1 or not isinstance(sizes, list):
        raise FeatureTableError(f"its description holds shard_rows {rows_per_file!r} and shard_bytes {sizes!r}")
    layout = Layout(rows, rows_per_file)
    for number in range(layout.files):
        shard = layout.path(path, number)
        size = shard.stat().st_size if shard.is_file() else 0
        if number >= len(sizes) or size != sizes[number]:
            raise FeatureTableError(f"its part {str(shard)!r} has {size} bytes")
    return layout


class TableBuilder:
    """Encodes every image of a split and stores the table, sharded if it is larger than ``shard_bytes``.

    Every file is written atomically, and the description that makes the table valid is written last. Complete shards
    of an interrupted build, or of a table with a damaged shard, are kept. Several processes may build shards of the
    same table at the same time.
    """

    def __init__(self, path: Path, dataset: CaptionDataset, encoder: Encoder, shard_bytes: int = SHARD_BYTES) -> None:
        self.path, self.dataset, self.encoder = path, dataset, encoder
        self.identity = _identity(dataset, encoder)
        self.shape = (len(dataset), encoder.num_locations, encoder.feature_dim)
        self.layout = Layout.for_shape(self.shape, shard_bytes, CHUNK)
        if self.layout.files > 1:
            self.identity["shard_rows"] = self.layout.rows_per_file
        self.description, self.plan = path.with_suffix(".json"), path.with_suffix(".plan.json")

    def build(self, progress: bool = True) -> None:
        """Build the table, with a progress bar or without. Only one process may build; others may ``help_build``."""
        if self.layout.files > 1 and self._describes(self.description):
            self.description.replace(self.plan)
        self.description.unlink(missing_ok=True)
        label = f"features of {self.dataset.name} {self.dataset.split} ({self.encoder.name})"
        with tqdm(total=len(self.dataset), desc=label, unit="image", disable=None if progress else True) as bar:
            if self.layout.files == 1:
                build_shard(self.path, self.dataset, self.encoder, self.layout.file_rows(0), bar)
            else:
                self._write_plan()
                self._build_shards(bar)
        self._write_description()

    def help_build(self) -> None:
        """Build shards that no other process is building, if another process has begun a build of this table."""
        if self.layout.files > 1 and self._describes(self.plan):
            self._build_shards()

    def _describes(self, file: Path) -> bool:
        """Whether a description, or the plan of a build, is of this table in this layout."""
        try:
            stored = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(stored, dict) and stored == {**stored, **self.identity}

    def _write_plan(self) -> None:
        """Start a sharded build; complete shards of an interrupted build of the same table are kept."""
        if self._describes(self.plan):
            return
        for stale in self.path.parent.glob(f"{self.path.stem}-?????-of-?????{self.path.suffix}"):
            stale.unlink()
        with atomic_path(self.plan) as partial:
            partial.write_text(json.dumps(self.identity, indent=1))

    def _build_shards(self, bar: tqdm | None = None) -> None:
        """Build the missing shards, each under its lock; without a bar, shards of other builders are not waited for."""
        shards = Shards(self.path, self.layout, self.shape)
        numbers = list(range(self.layout.files))
        for blocking in (False, True) if bar is not None else (False,):
            for number in numbers.copy():
                shard, rows = self.layout.path(self.path, number), self.layout.file_rows(number)
                try:
                    with FileLock(shard.with_name(f".{shard.stem}.lock")).acquire(blocking=blocking):
                        if not shards.is_complete(number):
                            remove_stale(shard.parent, shard.name)  # of a process that was killed
                            build_shard(shard, self.dataset, self.encoder, rows, bar)
                        elif bar is not None:
                            bar.update(len(rows))
                    numbers.remove(number)
                except Timeout:  # another process builds it
                    continue

    def _write_description(self) -> None:
        """Write the description that makes the table valid, once all its files are complete."""
        sizes = [self.layout.path(self.path, number).stat().st_size for number in range(self.layout.files)]
        description = {**self.identity, "shard_bytes": sizes} if len(sizes) > 1 else self.identity
        with atomic_path(self.description) as partial:
            partial.write_text(json.dumps(description, indent=1))
        self.plan.unlink(missing_ok=True)
        for lock in self.path.parent.glob(f".{self.path.stem}-*.lock"):  # of the shards, which are complete
            lock.unlink(missing_ok=True)


def build_shard(path: Path, dataset: CaptionDataset, encoder: Encoder, rows: range, bar: tqdm | None = None) -> None:
    """Encode some rows of a split into a file, atomically. The values do not depend on other rows."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        write_header(file, (len(rows), encoder.num_locations, encoder.feature_dim))
        for start in range(rows.start, rows.stop, CHUNK):
            annotations = encode_rows(dataset, encoder, start, min(CHUNK, rows.stop - start))
            file.write(np.ascontiguousarray(annotations).data)
            if bar is not None:
                bar.update(len(annotations))


def finish_features(table: FeatureTable, encoder: CNNEncoder, rows: range) -> FeatureTable:
    """Apply ``encoder.finish`` to ``rows`` of a table of its frozen part: a table of annotations, in memory."""
    starts = range(0, len(rows), CHUNK)
    chunks = (torch.from_numpy(table[rows[start : start + CHUNK]]).float() for start in starts)
    training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        annotations = [encoder.finish(chunk.to(encoder.device)).half().cpu().numpy() for chunk in chunks]
    encoder.train(training)
    array = np.concatenate(annotations)
    finished = FeatureTable(array)
    if table.masks is not None:
        finished.masks = table.masks[rows.start : rows.stop : rows.step]
        array[~finished.masks] = 0
    return finished


def open_features(
    dataset: CaptionDataset,
    encoder: Encoder,
    *,
    folder: Path | None = None,
    progress: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> FeatureTable:
    """The feature table of a split, built on first use.

    Images of a procedural dataset are encoded when their rows are first read. Processes with the same ``folder`` share
    the results; if it is not writable, each process encodes for itself, with a warning.

    Tables of other datasets are stored in ``folder``. Their names have a hash of images and encoder, so that a stale
    table is never read; a damaged table is built again, with a warning. If several processes need the same missing
    table, one builds it and the others wait, or build some of its shards.

    Args:
        dataset: the images.
        encoder: encodes them.
        folder: of the stored tables; else ``cache_folder()``.
        progress: whether to show a progress bar while building.
        shard_bytes: size of the table's largest file; a larger table is sharded, and read row by row.

    Raises:
        DataError: an image cannot be read, or the location mask of a row is invalid.
        OSError: a stored table cannot be read or written.
    """
    path = table_path(dataset, encoder, folder)
    table: FeatureTable
    if not dataset.procedural:
        table = _read_or_build(path, dataset, encoder, progress, shard_bytes)
    else:
        try:
            table = ProceduralFeatures(dataset, encoder, path)
        except OSError as error:
            warnings.warn(f"features are not shared between processes: {error}", stacklevel=2)
            table = ProceduralFeatures(dataset, encoder)
    table.masks = location_masks(dataset, encoder.num_locations)
    return table


def _read_or_build(
    path: Path, dataset: CaptionDataset, encoder: Encoder, progress: bool, shard_bytes: int
) -> FeatureTable:
    """Read a table, or build it under its lock; while another process has the lock, help that process."""
    read = functools.partial(read_table, path, dataset, encoder, shard_bytes=shard_bytes)
    with suppress(FeatureTableError):  # missing or incomplete
        return read()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder, lock = TableBuilder(path, dataset, encoder, shard_bytes), FileLock(path.with_name(f".{path.stem}.lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=POLL_SECONDS)
        except Timeout:
            builder.help_build()
    try:
        if path.exists() or builder.description.exists():
            try:
                return read()
            except FeatureTableError as error:
                warnings.warn(f"{error} Building it again now.", stacklevel=2)
        remove_stale(path.parent, path.stem + ".*")
        builder.build(progress)
        return read()
    finally:
        lock.release()
