"""Speed of environments over a feature table on disk, and of the CNN that writes one.

The table holds noise and the images have few pixels, in the formats of real ones, so that nothing is downloaded.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.core.vocabulary import SPECIAL_WORDS, Vocabulary
from glimpse_env.datasets import CaptionDataset, Shapes, make_dataset
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.features.build import CHUNK, SHARD_BYTES, build_shard, open_features, table_path
from glimpse_env.features.shards import Half
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import load_captioner
from glimpse_env.models.encoders.cnn import CNNEncoder
from glimpse_env.rollout.initial_states import InitialStates
from train.throughput.memory import Memory, bytes_read_from_disk
from train.throughput.timing import Stepper, prepare_references

NAME, SPLIT = "webdataset", "train"
SHARD_IMAGES = 10_000  # of a tar file
CAPTIONS = 5  # of an image
PATTERNS = 64  # encoded rows that all others are derived from
ROWS_IN_MEMORY = 2_000  # more than a cache of the processor holds
BLOCK = 40  # steps between two readings of the clock


def write_images(folder: Path, images: int, vocabulary: Vocabulary) -> None:
    """Write tar shards of images of a few pixels, each with captions of random words of the captioner."""
    rng = np.random.default_rng(0)
    words = np.array([word for word in vocabulary.words if word not in SPECIAL_WORDS and word.isalpha()])
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(pixels, "jpeg")
    for first in range(0, images, SHARD_IMAGES):
        path = folder / NAME / f"{SPLIT}-{first // SHARD_IMAGES:05}.tar"
        if path.exists():
            continue
        with atomic_path(path) as partial, tarfile.open(partial, "w") as tar:
            for number in range(first, min(first + SHARD_IMAGES, images)):
                lengths = rng.normal(10.5, 2.4, CAPTIONS).round().clip(6, 40).astype(int)
                captions = "\n".join(" ".join(rng.choice(words, length).tolist()) for length in lengths)
                for kind, content in (("jpg", pixels.getvalue()), ("txt", captions.encode())):
                    member = tarfile.TarInfo(f"{number:09}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_table(dataset: CaptionDataset, encoder: CNNEncoder, shard_bytes: int) -> FeatureTable:
    """Write a feature table without encoding the images.

    A row is one of a few encoded scenes, with noise in the lower half of its mantissas. So captions have words, no two
    rows are equal, and no disk compresses them.
    """
    rng = np.random.default_rng(0)

    @cache
    def patterns() -> Half:
        scenes = Shapes("val")
        return encoder.encode([scenes.image(row) for row in range(PATTERNS)]).half().cpu().numpy()

    def encode(inputs: Sequence[Any]) -> torch.Tensor:
        rows = patterns()[rng.integers(PATTERNS, size=len(inputs))].view(np.uint16)
        noise = np.frombuffer(rng.bytes(rows.nbytes), np.uint16).reshape(rows.shape)
        return torch.from_numpy((rows ^ noise & 0x1F).view(np.float16))

    noisy = copy.copy(encoder)
    noisy.encode = encode  # type: ignore[method-assign]
    return open_features(dataset, noisy, shard_bytes=shard_bytes)


class RepeatedRows(FeatureTable):
    """A table in memory with as many rows as a large one: row i is row i modulo the number of rows in the array."""

    def __init__(self, array: Half, rows: int) -> None:
        super().__init__(array)
        self._rows = rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, L, D)."""
        return self._rows, *super().shape[1:]

    def __getitem__(self, rows: Any) -> Half:
        """Annotations of ``rows``."""
        return super().__getitem__(np.asarray(rows) % len(self._array))

    def gather(self, rows: Any, locations: Any) -> Half:
        """Annotations of one location of each of ``rows``."""
        return super().gather(np.asarray(rows) % len(self._array), locations)


def with_table(env: GlimpseVectorEnv, features: FeatureTable) -> GlimpseVectorEnv:
    """A copy of an environment over another table."""
    copied = copy.copy(env)
    initial_states = InitialStates(env.task.assets.decoder, features)
    assets = replace(env.task.assets, features=features, initial_states=initial_states)
    copied.task = replace(env.task, assets=assets)
    copied._dynamics = copied.task.dynamics(env.num_envs)
    copied._started = env._started.copy()
    copied._generators = copy.deepcopy(env._generators)
    return copied


def _drop_page_cache(files: Sequence[Path]) -> None:
    """Let the kernel drop its cache of files, where the system can."""
    for path in files if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_features(dataset: CaptionDataset, encoder: CNNEncoder, rows: range) -> dict[str, float]:
    """Speed of building a feature table: reading and scaling images, the CNN, and writing."""
    with TemporaryDirectory() as folder:
        build_shard(Path(folder, "warm.npy"), dataset, encoder, rows[:CHUNK])
        start, start_process = time.perf_counter(), time.process_time()
        build_shard(Path(folder, "table.npy"), dataset, encoder, rows)
        seconds, process_seconds = time.perf_counter() - start, time.process_time() - start_process
        size = Path(folder, "table.npy").stat().st_size
    return {
        "images": len(rows),
        "images_per_second": len(rows) / seconds,
        "images_per_processor_second": len(rows) / process_seconds,
        "bytes_an_image": size / len(rows),
    }


def measure_table(
    folder: Path, captioner: str, images: int, num_envs: int, rounds: int, device: str, shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Steps a second of environments over a table on disk, beside one in memory.

    ``cold``: the kernel drops its cache of the table before every block of steps, so that each row is read from disk.
    ``cached``: the kernel has read the table, and caches what there is room for.

    Args:
        folder: of images and table, which are written unless they exist, and stay.
        captioner: determines the sizes and the words.
        images: N.
        num_envs: of the environments.
        rounds: of blocks of steps, in which the two tables take turns; the median counts.
        device: of the decoder.
        shard_bytes: of a file of the table.
    """
    model = load_captioner(captioner)
    with patch.dict(os.environ, GLIMPSE_CACHE=str(folder / "cache")):
        write_images(folder, images, model.vocabulary)
        start = time.perf_counter()
        dataset = make_dataset(NAME, SPLIT, folder)
        indexing = time.perf_counter() - start
        if len(dataset) != images:
            raise ValueError(f"{str(folder)!r} holds {len(dataset)} images; name another folder, or delete it")
        write_table(dataset, model.encoder, shard_bytes)
        path = table_path(dataset, model.encoder)
        files = sorted(path.parent.glob(f"{path.stem}*.npy"))
        del dataset
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:  # without the encoder's memory
            arguments = captioner, folder, files, num_envs, rounds, device, torch.get_num_threads()
            figures = process.submit(_measure, *arguments).result()
        return {
            "images": images,
            "gib_on_disk": sum(path.stat().st_size for path in files) / 2**30,
            "files": len(files),
            "seconds_to_read_the_index": indexing,
            **figures,
        }


def _measure(
    captioner: str, folder: Path, files: list[Path], num_envs: int, rounds: int, device: str, threads: int
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    before = Memory.current()
    env = GlimpseVectorEnv(
        num_envs, NAME, split=SPLIT, captioner=captioner, observe="index", data_root=folder, device=device
    )
    prepare_references(env)
    on_disk = Stepper(env, num_envs, env.features)
    _drop_page_cache(files)
    for _ in range(5 * BLOCK):
        on_disk.step()
    after = Memory.current()
    table = RepeatedRows(env.features[: min(ROWS_IN_MEMORY, len(env.features))], len(env.features))
    in_memory = Stepper(with_table(env, table), num_envs, env.features)
    figures = {"num_envs": num_envs, **_compare("cold", in_memory, on_disk, rounds, lambda: _drop_page_cache(files))}
    for path in files:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    figures |= _compare("cached", in_memory, on_disk, rounds, lambda: None)
    return figures | {
        "mib_resident": after.resident,
        "mib_private": after.private,
        "mib_resident_before": before.resident,
        "mib_private_before": before.private,
        "mib_resident_peak": after.peak,
    }


def _compare(
    name: str, in_memory: Stepper, on_disk: Stepper, rounds: int, before_disk: Callable[[], None]
) -> dict[str, float]:
    """Figures of blocks of steps in turns; ``before_disk`` is called before each block over the table on disk."""
    seconds, bytes_read = np.empty((rounds, 2, 2)), 0  # (rounds, tables, wall and processor)
    for number in tqdm(range(rounds), desc="stepping", unit="round", leave=False):
        for index, stepper in enumerate((in_memory, on_disk)):
            if stepper is on_disk:
                before_disk()
            read_before, start, start_process = bytes_read_from_disk(), time.perf_counter(), time.process_time()
            for _ in range(BLOCK):
                stepper.step()
            seconds[number, index] = time.perf_counter() - start, time.process_time() - start_process
            bytes_read += (bytes_read_from_disk() - read_before) * index
    (memory_seconds, _), (disk_seconds, _) = np.median(seconds, 0).tolist()
    # Ratios are of neighbouring blocks, which saw the same machine.
    share, process_share = np.median(seconds[:, 0] / seconds[:, 1], 0).tolist()
    steps = BLOCK * on_disk.num_envs
    return {
        f"steps_per_second_in_memory_beside_{name}": steps / memory_seconds,
        f"steps_per_second_{name}": steps / disk_seconds,
        f"share_{name}": share,
        f"share_{name}_by_processor_time": process_share,
        f"kib_from_disk_per_step_{name}": bytes_read / 1024 / (rounds * steps),
    }
