"""Sharded feature tables: read row by row, shards opened when needed and built one by one."""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from glimpse_env.datasets import make_dataset
from glimpse_env.datasets.photos.webdataset import WebDataset
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.features import shards as shard_module
from glimpse_env.features import table as tables
from glimpse_env.features.build import TableBuilder, open_features, read_table, table_path
from glimpse_env.features.shards import Layout, Shards
from glimpse_env.features.table import FeatureTable, FeatureTableError, ShardedFeatures, map_array
from glimpse_env.models.captioner import load_captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.rollout import initial_states as starts
from tests.glimpse_env.datasets.test_webdataset import sample, write
from train.throughput.feature_tables import with_table, write_images

IMAGES = 200  # four shards of 64, 64, 64 and 8
SMALL = 64 * 49 * 6 * 2  # bytes of a shard
CPU = torch.device("cpu")


class Counting(WebDataset):
    """Records the rows of the images that are drawn; raises at row ``last``."""

    last = IMAGES
    drawn: list[int]

    def image(self, row):
        if row >= self.last:
            raise KeyboardInterrupt
        self.drawn.append(row)
        return super().image(row)


def counting(root, last=IMAGES):
    dataset = Counting.open("train", root)
    dataset.last, dataset.drawn = last, []
    return dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tar")
    for first in (0, 90):
        members = [sample(f"{row}", row) for row in range(first, 90 if not first else IMAGES)]
        write(folder / f"train-{first:03}.tar", [member for group in members for member in group])
    return folder


@pytest.fixture(scope="module")
def dataset(root):
    return WebDataset.open("train", root)


def make_encoder(seed=0):
    torch.manual_seed(seed)
    return CNNEncoder(EncoderConfig(image_size=28, feature_dim=6)).requires_grad_(False)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def expected(dataset, encoder, tmp_path_factory):
    """The table in one file."""
    table = open_features(dataset, encoder, folder=tmp_path_factory.mktemp("whole"), progress=False)
    assert type(table) is FeatureTable
    return np.asarray(table).copy()


def open_it(dataset, encoder, folder):
    return open_features(dataset, encoder, folder=folder, progress=False, shard_bytes=SMALL)


@pytest.fixture
def table(dataset, encoder, tmp_path):
    return open_it(dataset, encoder, tmp_path)


def read(shards, rows):
    shards.read_into(np.empty((len(rows), *shards.shape[1:]), np.float16), np.arange(len(rows)), rows)


def shard_numbers(folder):
    return sorted(path.name.partition("-of-")[0][-1] for path in folder.glob("*-of-00004.npy"))


def test_a_sharded_table_is_the_table_of_one_file(table, expected, tmp_path):
    assert isinstance(table, ShardedFeatures)
    assert (table.shape, table.dtype, len(table)) == ((IMAGES, 49, 6), np.float16, IMAGES)
    assert np.array_equal(table[:], expected)
    assert np.array_equal(np.asarray(table), expected)
    assert np.array_equal(table.to(torch.device("cpu")).numpy(), expected)
    assert shard_numbers(tmp_path) == list("0123")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".lock", *[".npy"] * 4]


def test_rows_of_every_kind(table, expected):
    indices = [3, np.int64(64), -1, [5, 199, 5], np.array([[127, 128], [0, 64]]), np.arange(IMAGES) % 67 == 0]
    for rows in (*indices, slice(60, 70), slice(None, None, 50)):
        assert np.array_equal(table[rows], expected[rows])
    assert table[np.array([], np.int64)].shape == (0, 49, 6)
    rows, locations = np.array([5, 199, 64, -1]), np.array([0, 48, 7, 3])
    assert np.array_equal(table.gather(rows, locations), expected[rows, locations])
    assert np.array_equal(table.gather_tensor(rows, locations, torch.device("cpu")).numpy(), expected[rows, locations])
    assert np.array_equal(table.rows(torch.tensor([7, 150]), torch.device("cpu")).numpy(), expected[[7, 150]])
    for wrong in (IMAGES, -IMAGES - 1, [0, IMAGES]):
        with pytest.raises(IndexError):
            table[wrong]
    with pytest.raises(IndexError):
        table.gather([IMAGES], [0])
    table[3][:] = 0  # a fresh array
    assert table[3].any()


def test_a_shard_is_opened_when_a_row_of_it_is_read(dataset, encoder, table, expected, tmp_path):
    shards = open_it(dataset, encoder, tmp_path).shards
    assert len(shards._files) == 0
    read(shards, np.array([3, 60]))
    assert len(shards._files) == 1
    shards.gather(np.array([3, 199]), np.array([0, 0]))
    assert len(shards._files) == 2
    shards.prefetch(np.array([64, 3]))
    read(shards, np.array([65, 64]))
    assert len(shards._files) == 3
    copied = pickle.loads(pickle.dumps(table))
    assert len(copied.shards._files) == 0
    assert np.array_equal(copied[[1, 130]], expected[[1, 130]])
    assert len(copied.shards._files) == 2


def open_descriptors(folder):
    """Files of a folder that this process has open (Linux)."""
    return [path for path in Path("/proc/self/fd").iterdir() if folder in Path(os.path.realpath(path)).parents]


def test_of_many_files_some_are_closed_again(table, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module, "max_open_files", lambda: 2)
    copied = pickle.loads(pickle.dumps(table))
    rows = np.random.default_rng(0).integers(len(expected), size=200)
    assert copied.shards.layout.files > 2
    assert np.array_equal(copied[rows], expected[rows])
    assert np.array_equal(copied.gather(rows, rows % 49), expected[rows, rows % 49])
    assert len(copied.shards._files) == 2
    assert len(open_descriptors(tmp_path)) <= 2


def test_two_threads_that_open_the_same_file_leave_one_open(table, tmp_path, monkeypatch):
    copied, barrier = pickle.loads(pickle.dumps(table)), threading.Barrier(2)
    check = Shards._check

    def check_together(self, number):
        barrier.wait(10)
        return check(self, number)

    monkeypatch.setattr(Shards, "_check", check_together)
    threads = [threading.Thread(target=read, args=(copied.shards, np.array([0]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copied.shards._files) == 1
    assert len(open_descriptors(tmp_path)) == 1


def test_an_error_of_the_system_is_no_damaged_table(table, tmp_path, monkeypatch):
    """The message must not say that the table should be deleted."""
    copied = pickle.loads(pickle.dumps(table))

    def too_many(path, *args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", too_many)
        patched.setattr(np.lib.format, "open_memmap", too_many)
        with pytest.raises(OSError, match="Too many open files"):  # FeatureTableError is none
            copied[np.array([0])]
        with pytest.raises(OSError, match="Too many open files"):
            map_array(next(tmp_path.glob("*.npy")), "r")
    assert len(copied[np.array([0])]) == 1


def test_files_are_closed_with_the_table(table, tmp_path):
    shards = Shards(table.shards.path, table.shards.layout, table.shape)
    read(shards, np.array([0, 64, 128]))
    assert len(open_descriptors(tmp_path)) == 3
    del shards
    assert open_descriptors(tmp_path) == []


def test_an_interrupted_build_continues_after_its_last_complete_shard(root, encoder, expected, tmp_path):
    first = counting(root, last=150)
    with pytest.raises(KeyboardInterrupt):
        open_it(first, encoder, tmp_path)
    assert shard_numbers(tmp_path) == list("01")
    path = table_path(first, encoder, tmp_path)
    with pytest.raises(FeatureTableError, match="half written"):
        read_table(path, first, encoder)
    partial = tmp_path / f".{path.stem}-00002-of-00004.npy.abc.partial"  # as SIGKILL leaves it
    partial.mkdir()
    second = counting(root)
    assert np.array_equal(open_it(second, encoder, tmp_path)[:], expected)
    assert second.drawn == list(range(128, IMAGES))
    assert not partial.exists()
    third = counting(root)
    assert np.array_equal(open_it(third, encoder, tmp_path)[:], expected)
    assert third.drawn == []


def test_a_complete_shard_that_was_damaged_since_is_built_again(root, encoder, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        open_it(counting(root, last=150), encoder, tmp_path)
    (shard,) = tmp_path.glob("*-00001-of-00004.npy")
    truncate(shard)
    second = counting(root)
    assert np.array_equal(open_it(second, encoder, tmp_path)[:], expected)
    assert second.drawn == list(range(64, IMAGES))


def test_shards_of_another_table_are_not_kept(root, encoder, expected, tmp_path):
    encoder2 = make_encoder(1)
    with pytest.raises(KeyboardInterrupt):
        open_it(counting(root, last=150), encoder2, tmp_path)
    source, target = (table_path(counting(root), model, tmp_path) for model in (encoder2, encoder))
    for path in tmp_path.glob(f"{source.stem}*"):
        path.rename(tmp_path / path.name.replace(source.stem, target.stem))
    assert len(shard_numbers(tmp_path)) == 2
    second = counting(root)
    assert np.array_equal(open_it(second, encoder, tmp_path)[:], expected)
    assert second.drawn == list(range(IMAGES))


def test_shards_of_another_size_are_not_kept(root, encoder, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        open_it(counting(root, last=150), encoder, tmp_path)
    table = open_features(counting(root), encoder, folder=tmp_path, progress=False, shard_bytes=2 * SMALL)
    assert np.array_equal(table[:], expected)
    assert sorted(path.name[-18:-4] for path in tmp_path.glob("*.npy")) == ["00000-of-00002", "00001-of-00002"]


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def describe(description, **changes):
    description.write_text(json.dumps({**json.loads(description.read_text()), **changes}))


DAMAGES = {
    "missing": lambda shard, description: shard.unlink(),
    "truncated": lambda shard, description: truncate(shard),
    "longer": lambda shard, description: shard.write_bytes(shard.read_bytes() + b"\0"),
    "no rows": lambda shard, description: describe(description, shard_rows=0),
    "no sizes": lambda shard, description: describe(description, shard_bytes=7),
    "more shards": lambda shard, description: describe(description, shard_rows=32),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_reported_and_built_again(dataset, encoder, table, expected, tmp_path, damage):
    path = table_path(dataset, encoder, tmp_path)
    damage(tmp_path / f"{path.stem}-00002-of-00004.npy", path.with_suffix(".json"))
    with pytest.raises(FeatureTableError, match=rf"{path.name}.*delete it and it is built again"):
        read_table(path, dataset, encoder)
    with pytest.warns(UserWarning, match=rf"{path.name}.*Building it again now"):
        assert np.array_equal(open_it(dataset, encoder, tmp_path)[:], expected)


def test_a_damaged_shard_alone_is_built_again(root, encoder, expected, tmp_path):
    dataset = counting(root)
    open_it(dataset, encoder, tmp_path)
    dataset.drawn.clear()
    path = table_path(dataset, encoder, tmp_path)
    shard = tmp_path / f"{path.stem}-00002-of-00004.npy"
    truncate(shard)
    with pytest.warns(UserWarning, match="Building it again now"):
        assert np.array_equal(open_it(dataset, encoder, tmp_path)[:], expected)
    assert dataset.drawn == [*range(128, 192)]


NO_SHARDS = [
    b"garbage",
    b"\x93NUMPY\x01\x00",
    b"\x93NUMPY\x03\x00",
    np.zeros((64, 49, 6), np.int16),
    np.zeros((49, 64, 6), np.float16),
]


@pytest.mark.parametrize("content", NO_SHARDS)
def test_a_malformed_shard_is_reported_when_it_is_opened(table, tmp_path, content):
    (shard,) = tmp_path.glob("*-00002-of-00004.npy")
    size = shard.stat().st_size
    if isinstance(content, bytes):
        shard.write_bytes(content.ljust(size, b"x"))
    else:
        np.save(shard, content)
    assert shard.stat().st_size == size
    assert table[[0, 199]].any()
    for read_row in (lambda: table[130], lambda: table.gather([130], [0])):
        with pytest.raises(FeatureTableError, match=rf"{shard.name}.*delete it and it is built again"):
            read_row()


def test_a_shard_that_is_truncated_later_is_reported(table, tmp_path):
    table[130]
    (shard,) = tmp_path.glob("*-00002-of-00004.npy")
    os.truncate(shard, 1000)
    with pytest.raises(FeatureTableError, match=rf"{shard.name}.*was cut off"):
        table[130]


def test_a_large_table_of_one_file_is_read_row_by_row(dataset, encoder, expected, tmp_path):
    path = table_path(dataset, encoder, tmp_path)
    TableBuilder(path, dataset, encoder).build(progress=False)
    table = read_table(path, dataset, encoder, shard_bytes=SMALL)
    assert isinstance(table, ShardedFeatures)
    assert np.array_equal(table[:], expected)
    np.save(path, expected)  # as numpy itself writes it
    assert np.array_equal(read_table(path, dataset, encoder, shard_bytes=SMALL)[[0, 199]], expected[[0, 199]])
    assert type(read_table(path, dataset, encoder)) is FeatureTable


@pytest.mark.parametrize(
    ("shape", "limit", "multiple", "rows_per_file", "files"),
    [
        ((120_000, 49, 1280), 1 << 30, 64, 8512, 15),
        ((6_000, 49, 1280), 1 << 30, 64, 6000, 1),
        ((100, 2, 3), 1, 64, 64, 2),
        ((10, 2, 3), 1, 64, 10, 1),
        ((0, 2, 3), 100, 64, 1, 1),
    ],
)
def test_layouts(shape, limit, multiple, rows_per_file, files):
    layout = Layout.for_shape(shape, limit, multiple)
    assert (layout.rows_per_file, layout.files) == (rows_per_file, files)
    assert [row for number in range(files) for row in layout.file_rows(number)] == list(range(shape[0]))


@pytest.fixture(scope="module")
def shapes_env(tmp_path_factory):
    """Environments with the captioner of Shapes over a table of one file, and the same table sharded."""
    folder = tmp_path_factory.mktemp("env")
    captioner = load_captioner("shapes")
    write_images(folder, 150, captioner.vocabulary)
    before = os.environ.get("GLIMPSE_CACHE")
    os.environ["GLIMPSE_CACHE"] = str(folder / "cache")
    try:
        env = GlimpseVectorEnv(8, "webdataset", captioner=captioner, observe="index", data_root=folder)
    finally:
        os.environ.pop("GLIMPSE_CACHE") if before is None else os.environ.update(GLIMPSE_CACHE=before)
    dataset = make_dataset("webdataset", "train", folder)
    size = 64 * 49 * 64 * 2
    return env, open_features(dataset, captioner.encoder, folder=folder / "shards", progress=False, shard_bytes=size)


def rollout(env, steps=60):
    results = [env.reset(seed=3)[0]]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        observation, reward, ended, _, _ = env.step(rng.integers(49, size=8))
        results.append({**observation, "reward": reward, "ended": ended})
    assert sum(result["ended"].sum() for result in results[1:]) > 8
    return results


@pytest.mark.parametrize("cached_rows", [None, 0, 3, 10])
def test_environments_over_a_sharded_table_are_the_same(shapes_env, monkeypatch, cached_rows):
    env, table = shapes_env
    assert not env.features.on_disk
    assert table.on_disk
    if cached_rows is not None:
        monkeypatch.setattr(tables, "CACHE_BYTES", cached_rows * 49 * 64 * 2)
        table = pickle.loads(pickle.dumps(table))
    for expected, result in zip(rollout(env), rollout(with_table(env, table)), strict=True):
        for name, value in expected.items():
            np.testing.assert_array_equal(result[name], value, err_msg=name)


def test_a_pinned_row_is_not_read_again(table, expected, tmp_path, monkeypatch):
    rows, locations = np.array([3, 64, 199, 3]), np.array([0, 48, 7, 9])
    table.pin(rows, CPU)
    monkeypatch.setattr(shard_module, "_read_at", None)
    table.pin(rows[:2], CPU)
    assert np.array_equal(table.gather(rows, locations), expected[rows, locations])
    assert np.array_equal(table[rows], expected[rows])
    assert np.array_equal(table[64], expected[64])
    table[3][:] = 0  # a fresh array
    assert table[3].any()
    with pytest.raises(TypeError):
        table.gather(np.array([3, 4]), locations[:2])
    monkeypatch.undo()
    assert np.array_equal(table.gather(np.array([3, 4]), locations[:2]), expected[[3, 4], locations[:2]])
    with pytest.raises(IndexError):
        table.pin(np.array([IMAGES]), CPU)
    assert np.array_equal(table[[[3, 4], [5, 199]]], expected[[[3, 4], [5, 199]]])  # some of them are pinned


def test_no_row_is_cached_for_a_device_that_has_the_table(table):
    table.to(CPU)
    table.pin(np.array([3, 64]), CPU)
    assert (table._cache.find(np.array([3, 64])) < 0).all()


def test_a_row_that_could_not_be_read_is_not_cached(table, expected, tmp_path):
    last = table.shards.layout.path(table.shards.path, 3)
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(FeatureTableError, match="delete it and it is built again"):
        table.pin(np.array([3, 199]), CPU)
    last.write_bytes(content)
    assert np.array_equal(table[[3, 199]], expected[[3, 199]])


def test_initial_states_that_are_not_cached_are_the_same(monkeypatch):
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=5, feature_dim=6, hidden_dim=7)
    table = FeatureTable(np.random.default_rng(0).normal(size=(20, 49, 6)).astype(np.float16))
    decoder = FrozenDecoder(CaptionDecoder(config))
    rows = np.array([3, 19, 3])
    cached = starts.InitialStates(decoder, table)
    expected = cached[rows]
    monkeypatch.setattr(starts, "CACHE_BYTES", 0)
    uncached = starts.InitialStates(decoder, table)
    for _ in range(2):
        for value, recomputed, again in zip(expected, uncached[rows], cached[rows], strict=True):
            torch.testing.assert_close(value, recomputed, rtol=0, atol=1e-6)
            assert torch.equal(value, again)
    many = np.resize(np.arange(20), 3 * starts.CHUNK + 5)
    for value, recomputed in zip(cached[many], uncached[many], strict=True):
        torch.testing.assert_close(value, recomputed, rtol=0, atol=1e-6)
    assert uncached[many[:0]].hidden.shape == (0, 7)
