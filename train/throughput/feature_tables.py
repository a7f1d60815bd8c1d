"""How fast environments step over a feature table that is larger than memory is meant to hold, on disk.

The table is of noise, the images of a few pixels, both in the form of real ones and read by the code that reads those;
so nothing has to be downloaded.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.core.vocabulary import SPECIAL_WORDS, Vocabulary
from glimpse_env.datasets import CaptionDataset, Shapes, make_dataset
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.features.build import CHUNK, SHARD_BYTES, Half, build_shard, open_features, table_path
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import load_captioner
from glimpse_env.models.encoders.cnn import CNNEncoder
from glimpse_env.rollout.initial_states import StartTable
from train.throughput.environments import Memory, Ticking

NAME, SPLIT = "webdataset", "train"
IN_SHARD = 10_000  # images of a tar
CAPTIONS = 5  # of an image
PATTERNS = 64  # rows that all others are made from
IN_MEMORY = 2_000  # rows of the table in memory: more than a cache of the processor holds
BLOCK = 40  # steps between two looks at the clock


def write_images(folder: Path, images: int, vocabulary: Vocabulary) -> None:
    """Tar shards of images of a few pixels, each with captions of random words that the captioner can say."""
    rng = np.random.default_rng(0)
    words = np.array([word for word in vocabulary.words if word not in SPECIAL_WORDS and word.isalpha()])
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(pixels, "jpeg")
    for first in range(0, images, IN_SHARD):
        path = folder / NAME / f"{SPLIT}-{first // IN_SHARD:05}.tar"
        if path.exists():
            continue
        with atomic_path(path) as partial, tarfile.open(partial, "w") as tar:
            for number in range(first, min(first + IN_SHARD, images)):
                lengths = rng.normal(10.5, 2.4, CAPTIONS).round().clip(6, 40).astype(int)
                captions = "\n".join(" ".join(rng.choice(words, length).tolist()) for length in lengths)
                for kind, content in (("jpg", pixels.getvalue()), ("txt", captions.encode())):
                    member = tarfile.TarInfo(f"{number:09}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_table(dataset: CaptionDataset, encoder: CNNEncoder, shard_bytes: int) -> FeatureTable:
    """A feature table as any other, but of what a captioner makes sentences of and no CNN has seen.

    A row is one of a few that are encoded, with noise in the lower half of its mantissas, so that no two are alike
    and no disk can keep them in less space than they take.
    """
    rng = np.random.default_rng(0)

    @cache
    def patterns() -> Half:
        scenes = Shapes("val")
        encoded: Half = encoder.encode([scenes.image(row) for row in range(PATTERNS)]).half().cpu().numpy()
        return encoded

    def encode(images: Sequence[Image.Image]) -> torch.Tensor:
        rows = patterns()[rng.integers(PATTERNS, size=len(images))].view(np.uint16)
        noise = np.frombuffer(rng.bytes(rows.nbytes), np.uint16).reshape(rows.shape)
        return torch.from_numpy((rows ^ noise & 0x1F).view(np.float16))

    noisy = copy.copy(encoder)
    noisy.encode = encode  # type: ignore[method-assign]
    return open_features(dataset, noisy, shard_bytes=shard_bytes)


class RowsInMemory(FeatureTable):
    """As many rows as a large table has, of which few are kept: row i is that of i modulo their number."""

    def __init__(self, array: Half, rows: int) -> None:
        super().__init__(array)
        self._rows = rows

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, L, D)."""
        return self._rows, *super().shape[1:]

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: Any) -> Half:
        """Annotations of ``rows``."""
        return super().__getitem__(np.asarray(rows) % len(self._array))

    def at(self, rows: Any, locations: Any) -> Half:
        """Annotations of one location of each of ``rows``."""
        return super().at(np.asarray(rows) % len(self._array), locations)


def over(env: GlimpseVectorEnv, features: FeatureTable) -> GlimpseVectorEnv:
    """The same environment over another table."""
    other = copy.copy(env)
    stock = env.task.stock
    other.task = replace(env.task, stock=replace(stock, features=features, starts=StartTable(stock.decoder, features)))
    other._dynamics = other.task.dynamics(env.num_envs)
    other._started = env._started.copy()
    other._generators = copy.deepcopy(env._generators)
    return other


def forget(files: Sequence[Path]) -> None:
    """Let the kernel drop what it keeps of files, where it can be told to."""
    for path in files if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak() -> float:
    """The most that was resident of this process since it began, in MiB (Linux)."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(said["VmHWM"].split()[0]) / 1024


def read_from_disk() -> int:
    """Bytes that this process has had read from disk, read-ahead included (Linux)."""
    said = dict(line.split(":") for line in Path("/proc/self/io").read_text().splitlines())
    return int(said["read_bytes"])


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Feature tables are kept in a folder meanwhile."""
    before = os.environ.get("GLIMPSE_CACHE")
    os.environ["GLIMPSE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["GLIMPSE_CACHE"]
        else:
            os.environ["GLIMPSE_CACHE"] = before


def measure_features(dataset: CaptionDataset, encoder: CNNEncoder, rows: range) -> dict[str, float]:
    """How long images take to become a feature table: reading, scaling, the CNN, and writing."""
    with TemporaryDirectory() as folder:
        build_shard(Path(folder, "warm.npy"), dataset, encoder, rows[:CHUNK])
        began, worked = time.perf_counter(), time.process_time()
        build_shard(Path(folder, "table.npy"), dataset, encoder, rows)
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        size = Path(folder, "table.npy").stat().st_size
    return {
        "images": len(rows),
        "images_per_second": len(rows) / seconds,
        "images_per_processor_second": len(rows) / worked,
        "bytes_an_image": size / len(rows),
    }


def measure_table(
    folder: Path, captioner: str, images: int, num_envs: int, rounds: int, device: str, shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Steps a second of environments over a table on disk, beside one in memory.

    Once the kernel drops what it has kept of the table before every block of steps, so that each row is read from disk;
    once it has read the whole table, and keeps of it what there is room for.

    Args:
        folder: where the images and the table are written, unless they are there; they stay.
        captioner: whose sizes and words the table is made for.
        images: N.
        num_envs: of the environments.
        rounds: of blocks of steps, in which the two tables take turns; the median counts.
        device: of the decoder.
        shard_bytes: of a file of the table.
    """
    speaker = load_captioner(captioner)
    with cache_in(folder / "cache"):
        write_images(folder, images, speaker.vocabulary)
        began = time.perf_counter()
        dataset = make_dataset(NAME, SPLIT, folder)
        indexing = time.perf_counter() - began
        if len(dataset) != images:
            raise ValueError(f"{str(folder)!r} holds {len(dataset)} images; name another folder, or delete it")
        write_table(dataset, speaker.encoder, shard_bytes)
        whole = table_path(dataset, speaker.encoder)
        files = sorted(whole.parent.glob(f"{whole.stem}*.npy"))
        del dataset
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # which has encoded nothing
            sizes = captioner, folder, files, num_envs, rounds, device, torch.get_num_threads()
            measured = fresh.submit(_measure, *sizes).result()
        return {
            "images": images,
            "gib_on_disk": sum(path.stat().st_size for path in files) / 2**30,
            "files": len(files),
            "seconds_to_read_the_index": indexing,
            **measured,
        }


def _measure(
    captioner: str, folder: Path, files: list[Path], num_envs: int, rounds: int, device: str, threads: int
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    before = Memory.now()
    env = GlimpseVectorEnv(
        num_envs, NAME, split=SPLIT, captioner=captioner, observe="index", data_root=folder, device=device
    )
    env.task.stock.references.table(4, end=True).prepare(np.arange(len(env.dataset)))
    on_disk = Ticking(env, num_envs, env.features.shape[1])
    forget(files)
    for _ in range(5 * BLOCK):
        on_disk.step()
    held = Memory.now()
    memory = {
        "mib_resident": held.resident,
        "mib_private": held.private,
        "mib_resident_before": before.resident,
        "mib_private_before": before.private,
        "mib_resident_peak": peak(),
    }
    table = RowsInMemory(env.features[: min(IN_MEMORY, len(env.features))], len(env.features))
    in_memory = Ticking(over(env, table), num_envs, env.features.shape[1])
    cold = in_turns_with(in_memory, on_disk, rounds, lambda: forget(files))
    for path in files:
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    cached = in_turns_with(in_memory, on_disk, rounds, lambda: None)
    figures: dict[str, Any] = {"num_envs": num_envs}
    for name, (own, other, share, worked, read) in {"cold": cold, "cached": cached}.items():
        figures |= {
            f"steps_per_second_in_memory_beside_{name}": num_envs * BLOCK / own,
            f"steps_per_second_{name}": num_envs * BLOCK / other,
            f"share_{name}": share,
            f"share_{name}_by_processor_time": worked,
            f"kib_from_disk_per_step_{name}": read / 1024 / (rounds * BLOCK * num_envs),
        }
    return figures | memory


def in_turns_with(
    in_memory: Ticking, on_disk: Ticking, rounds: int, before: Callable[[], None]
) -> tuple[float, float, float, float, int]:
    """How blocks of steps over two tables compare.

    Args:
        in_memory: an environment over the first.
        on_disk: one over the second.
        rounds: blocks of each, in turns.
        before: what is done before each block of the second.

    Returns:
        Seconds of a block over each, the first as a share of the second, and that of processor time, each the median;
        and bytes read from disk over the second table, in all.
    """
    taken, read = np.empty((rounds, 2, 2)), 0
    for number in tqdm(range(rounds), desc="stepping", unit="round", leave=False):
        for place, ticking in enumerate((in_memory, on_disk)):
            if place:
                before()
            had, began, worked = read_from_disk(), time.perf_counter(), time.process_time()
            for _ in range(BLOCK):
                ticking.step()
            taken[number, place] = time.perf_counter() - began, time.process_time() - worked
            read += (read_from_disk() - had) * place
    (own, _), (other, _) = np.median(taken, 0).tolist()
    share, worked = np.median(taken[:, 0] / taken[:, 1], 0).tolist()  # of blocks in turn, which saw the same machine
    return own, other, share, worked, read
