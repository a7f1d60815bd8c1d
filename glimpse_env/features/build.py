"""Annotation vectors of a whole split, computed once and shared read-only.

Knows how a table is built, kept on disk and recognised. It does not know captions, episodes or agents.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from glimpse_env.core.atomic_files import atomic_path, sweep
from glimpse_env.datasets.base import CaptionDataset
from glimpse_env.features.lazy_table import ProceduralFeatures, encode_rows
from glimpse_env.features.shards import UNREADABLE, Layout, Shards, write_header
from glimpse_env.features.table import FeatureTable, FeatureTableError, Half, ShardedFeatures, map_array, sharded
from glimpse_env.models.encoders.cnn import CNNEncoder

__all__ = [
    "FeatureTable",
    "FeatureTableError",
    "Half",
    "ProceduralFeatures",
    "ShardedFeatures",
    "build_table",
    "cache_folder",
    "finish_features",
    "open_features",
    "read_table",
    "table_path",
]

FORMAT = "glimpse-features-1"
HELPS = 0.2  # seconds after which one that waits for a table looks whether it can build a part
CHUNK = 64  # rows of photographs encoded together
SHARD_BYTES = 1 << 30  # of a file; larger tables are several, which are read row by row and not mapped


def cache_folder() -> Path:
    """Where tables are kept: ``$GLIMPSE_CACHE``, else ``~/.cache/glimpse_env``."""
    return Path(os.environ.get("GLIMPSE_CACHE") or "~/.cache/glimpse_env").expanduser()


def _key(dataset: CaptionDataset, encoder: CNNEncoder) -> str:
    device = encoder.anchor.device.type  # another computes with another rounding
    parts = (FORMAT, dataset.fingerprint(), encoder.fingerprint(), *([device] if device != "cpu" else []))
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
        OSError: it cannot be read for a reason that lies elsewhere.
    """
    cure = "delete it and it is built again"
    expected = _identity(dataset, encoder)
    try:
        identity = json.loads(path.with_suffix(".json").read_text())
    except UNREADABLE as error:
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
            return sharded(path, layout, (rows, locations, features))
        array = map_array(path, "r")
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
    last. Of a build that ended in between, and of a table with a damaged part, whole parts are kept.

    Args:
        path: of the table.
        dataset: the images.
        encoder: makes their annotations.
        progress: whether to show a progress bar.
        shard_bytes: of a file, at most.
    """
    identity = _identity(dataset, encoder)
    layout, description = Layout.of(identity["shape"], shard_bytes, CHUNK), path.with_suffix(".json")
    if layout.files > 1 and _says(description, identity, layout):
        description.replace(path.with_suffix(".plan.json"))
    description.unlink(missing_ok=True)
    label = f"features of {dataset.name} {dataset.split} ({encoder.config.backbone})"
    with tqdm(total=len(dataset), desc=label, unit="image", disable=None if progress else True) as bar:
        if layout.files == 1:
            build_shard(path, dataset, encoder, layout.part(0), bar)
        else:
            plan_shards(path, identity, layout)
            build_shards(path, dataset, encoder, layout, bar)
    describe_table(path, identity, layout)


def _says(file: Path, identity: dict[str, Any], layout: Layout) -> bool:
    """Whether a description, or the plan of a build, is of just this table in just these parts."""
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said == {**said, **identity, "shard_rows": layout.each}


def _planned(path: Path, identity: dict[str, Any], layout: Layout) -> bool:
    """Whether the parts of just this table are being built, or were when the build ended."""
    return _says(path.with_suffix(".plan.json"), identity, layout)


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
            encoded = encode_rows(dataset, encoder, start, min(CHUNK, rows.stop - start))
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
