"""Feature tables in parts: read row by row, opened when needed, built part by part."""

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
from glimpse_env.features.build import (
    FeatureTableError,
    ShardedFeatures,
    build_table,
    open_features,
    read_table,
    table_path,
)
from glimpse_env.features.shards import Layout, Shards
from glimpse_env.features.table import FeatureTable, map_array
from glimpse_env.models.captioner import load_captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.rollout import initial_states as starts
from tests.glimpse_env.datasets.test_webdataset import sample, write
from train.throughput.feature_tables import over, write_images

IMAGES = 200  # four parts of 64, 64, 64 and 8
SMALL = 64 * 49 * 6 * 2  # bytes of a part
CPU = torch.device("cpu")


class Counting(WebDataset):
    """Counts the images that are drawn, and stops at one."""

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
        write(folder / f"train-{first:03}.tar", [member for one in members for member in one])
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


def parts(folder):
    return sorted(path.name.partition("-of-")[0][-1] for path in folder.glob("*-of-00004.npy"))


def test_a_table_in_parts_is_the_table_in_one(table, expected, tmp_path):
    assert isinstance(table, ShardedFeatures)
    assert (table.shape, table.dtype, len(table)) == ((IMAGES, 49, 6), np.float16, IMAGES)
    assert np.array_equal(table[:], expected)
    assert np.array_equal(np.asarray(table), expected)
    assert np.array_equal(table.on(torch.device("cpu")).numpy(), expected)
    assert parts(tmp_path) == list("0123")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".lock", *[".npy"] * 4]


def test_rows_of_every_kind(table, expected):
    mask = np.arange(IMAGES) % 67 == 0
    places = [
        3,
        np.int64(64),
        -1,
        [5, 199, 5],
        np.array([[127, 128], [0, 64]]),
        mask,
        slice(60, 70),
        slice(None, None, 50),
    ]
    for rows in places:
        assert np.array_equal(table[rows], expected[rows])
    assert table[np.array([], np.int64)].shape == (0, 49, 6)
    rows, locations = np.array([5, 199, 64, -1]), np.array([0, 48, 7, 3])
    assert np.array_equal(table.at(rows, locations), expected[rows, locations])
    assert np.array_equal(table.glimpsed(rows, locations, torch.device("cpu")).numpy(), expected[rows, locations])
    assert np.array_equal(table.rows(torch.tensor([7, 150]), torch.device("cpu")).numpy(), expected[[7, 150]])
    for wrong in (IMAGES, -IMAGES - 1, [0, IMAGES]):
        with pytest.raises(IndexError):
            table[wrong]
    with pytest.raises(IndexError):
        table.at([IMAGES], [0])
    table[3][:] = 0  # a fresh array
    assert table[3].any()


def test_a_part_is_opened_when_a_row_of_it_is_read(dataset, encoder, table, expected, tmp_path):
    shards = open_it(dataset, encoder, tmp_path).shards
    assert shards.opened == 0
    read(shards, np.array([3, 60]))
    assert shards.opened == 1
    shards.at(np.array([3, 199]), np.array([0, 0]))
    assert shards.opened == 2
    shards.ahead(np.array([64, 3]))
    read(shards, np.array([65, 64]))
    assert shards.opened == 3
    other = pickle.loads(pickle.dumps(table))
    assert other.shards.opened == 0
    assert np.array_equal(other[[1, 130]], expected[[1, 130]])
    assert other.shards.opened == 2


def held(folder):
    """Files of a folder that this process has open (Linux)."""
    return [path for path in Path("/proc/self/fd").iterdir() if folder in Path(os.path.realpath(path)).parents]


def test_of_many_files_some_are_closed_again(table, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module, "may_be_open", lambda: 2)
    other = pickle.loads(pickle.dumps(table))
    rows = np.random.default_rng(0).integers(len(expected), size=200)
    assert other.shards.layout.files > 2
    assert np.array_equal(other[rows], expected[rows])
    assert np.array_equal(other.at(rows, rows % 49), expected[rows, rows % 49])
    assert other.shards.opened == 2
    assert len(held(tmp_path)) <= 2


def test_two_threads_that_open_one_file_leave_one_open(table, tmp_path, monkeypatch):
    other, both = pickle.loads(pickle.dumps(table)), threading.Barrier(2)
    check = Shards._check

    def slowly(self, number):
        both.wait(10)
        return check(self, number)

    monkeypatch.setattr(Shards, "_check", slowly)
    threads = [threading.Thread(target=read, args=(other.shards, np.array([0]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.shards.opened == 1
    assert len(held(tmp_path)) == 1


def test_a_system_in_trouble_is_not_a_damaged_table(table, tmp_path, monkeypatch):
    """Nobody is told to delete what took days."""
    other = pickle.loads(pickle.dumps(table))

    def too_many(path, *how, **more):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", too_many)
        patched.setattr(np.lib.format, "open_memmap", too_many)
        with pytest.raises(OSError, match="Too many open files"):  # FeatureTableError is none
            other[np.array([0])]
        with pytest.raises(OSError, match="Too many open files"):
            map_array(next(tmp_path.glob("*.npy")), "r")
    assert len(other[np.array([0])]) == 1


def test_files_are_closed_with_the_table(table, tmp_path):
    shards = Shards(table.shards.whole, table.shards.layout, table.shape)
    read(shards, np.array([0, 64, 128]))
    assert len(held(tmp_path)) == 3
    del shards
    assert held(tmp_path) == []


def test_a_build_that_was_cut_off_goes_on_after_its_last_whole_part(root, encoder, expected, tmp_path):
    first = counting(root, last=150)
    with pytest.raises(KeyboardInterrupt):
        open_it(first, encoder, tmp_path)
    assert parts(tmp_path) == list("01")
    path = table_path(first, encoder, tmp_path)
    with pytest.raises(FeatureTableError, match="half written"):
        read_table(path, first, encoder)
    left = tmp_path / f".{path.stem}-00002-of-00004.npy.abc.partial"  # as SIGKILL leaves it
    left.mkdir()
    second = counting(root)
    assert np.array_equal(open_it(second, encoder, tmp_path)[:], expected)
    assert second.drawn == list(range(128, IMAGES))
    assert not left.exists()
    third = counting(root)
    assert np.array_equal(open_it(third, encoder, tmp_path)[:], expected)
    assert third.drawn == []


def test_a_whole_part_that_was_damaged_meanwhile_is_built_again(root, encoder, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        open_it(counting(root, last=150), encoder, tmp_path)
    (one,) = tmp_path.glob("*-00001-of-00004.npy")
    one.write_bytes(one.read_bytes()[:-1])
    second = counting(root)
    assert np.array_equal(open_it(second, encoder, tmp_path)[:], expected)
    assert second.drawn == list(range(64, IMAGES))


def test_parts_of_another_table_are_not_gone_on_with(root, encoder, expected, tmp_path):
    other = make_encoder(1)
    with pytest.raises(KeyboardInterrupt):
        open_it(counting(root, last=150), other, tmp_path)
    theirs, ours = (table_path(counting(root), one, tmp_path) for one in (other, encoder))
    for path in tmp_path.glob(f"{theirs.stem}*"):
        path.rename(tmp_path / path.name.replace(theirs.stem, ours.stem))
    assert len(parts(tmp_path)) == 2
    second = counting(root)
    assert np.array_equal(open_it(second, encoder, tmp_path)[:], expected)
    assert second.drawn == list(range(IMAGES))


def test_parts_of_another_size_are_not_gone_on_with(root, encoder, expected, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        open_it(counting(root, last=150), encoder, tmp_path)
    table = open_features(counting(root), encoder, folder=tmp_path, progress=False, shard_bytes=2 * SMALL)
    assert np.array_equal(table[:], expected)
    assert sorted(path.name[-18:-4] for path in tmp_path.glob("*.npy")) == ["00000-of-00002", "00001-of-00002"]


def damage_missing(part, description):
    part.unlink()


def damage_cut(part, description):
    part.write_bytes(part.read_bytes()[:-1])


def damage_longer(part, description):
    part.write_bytes(part.read_bytes() + b"\0")


def damage_description(part, description):
    description.write_text(json.dumps({**json.loads(description.read_text()), "shard_rows": 0}))


def damage_description_kind(part, description):
    description.write_text(json.dumps({**json.loads(description.read_text()), "shard_bytes": 7}))


def damage_description_count(part, description):
    description.write_text(json.dumps({**json.loads(description.read_text()), "shard_rows": 32}))


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_table_is_named_and_built_again(dataset, encoder, table, expected, tmp_path, damage):
    path = table_path(dataset, encoder, tmp_path)
    damage(tmp_path / f"{path.stem}-00002-of-00004.npy", path.with_suffix(".json"))
    with pytest.raises(FeatureTableError, match=rf"{path.name}.*delete it and it is built again"):
        read_table(path, dataset, encoder)
    with pytest.warns(UserWarning, match=rf"{path.name}.*Building it again now"):
        assert np.array_equal(open_it(dataset, encoder, tmp_path)[:], expected)


def test_of_a_table_with_a_damaged_part_that_part_alone_is_built_again(root, encoder, expected, tmp_path):
    dataset = counting(root)
    open_it(dataset, encoder, tmp_path)
    dataset.drawn.clear()
    path = table_path(dataset, encoder, tmp_path)
    part = tmp_path / f"{path.stem}-00002-of-00004.npy"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="Building it again now"):
        assert np.array_equal(open_it(dataset, encoder, tmp_path)[:], expected)
    assert dataset.drawn == [*range(128, 192)]


NO_PARTS = [
    b"garbage",
    b"\x93NUMPY\x01\x00",
    b"\x93NUMPY\x03\x00",
    np.zeros((64, 49, 6), np.int16),
    np.zeros((49, 64, 6), np.float16),
]


@pytest.mark.parametrize("content", NO_PARTS)
def test_a_part_that_is_no_part_is_named_when_it_is_opened(table, tmp_path, content):
    (part,) = tmp_path.glob("*-00002-of-00004.npy")
    size = part.stat().st_size
    if isinstance(content, bytes):
        part.write_bytes(content.ljust(size, b"x"))
    else:
        np.save(part, content)
    assert part.stat().st_size == size
    assert table[[0, 199]].any()
    for ask in (lambda: table[130], lambda: table.at([130], [0])):
        with pytest.raises(FeatureTableError, match=rf"{part.name}.*delete it and it is built again"):
            ask()


def test_a_part_that_is_cut_off_later_is_named(table, tmp_path):
    table[130]
    (part,) = tmp_path.glob("*-00002-of-00004.npy")
    os.truncate(part, 1000)
    with pytest.raises(FeatureTableError, match=rf"{part.name}.*was cut off"):
        table[130]


def test_a_large_table_of_one_file_is_read_row_by_row(dataset, encoder, expected, tmp_path):
    path = table_path(dataset, encoder, tmp_path)
    build_table(path, dataset, encoder, progress=False)
    table = read_table(path, dataset, encoder, shard_bytes=SMALL)
    assert isinstance(table, ShardedFeatures)
    assert np.array_equal(table[:], expected)
    np.save(path, expected)  # as numpy itself writes it
    assert np.array_equal(read_table(path, dataset, encoder, shard_bytes=SMALL)[[0, 199]], expected[[0, 199]])
    assert type(read_table(path, dataset, encoder)) is FeatureTable


@pytest.mark.parametrize(
    ("shape", "limit", "multiple", "each", "files"),
    [
        ((120_000, 49, 1280), 1 << 30, 64, 8512, 15),
        ((6_000, 49, 1280), 1 << 30, 64, 6000, 1),
        ((100, 2, 3), 1, 64, 64, 2),
        ((10, 2, 3), 1, 64, 10, 1),
        ((0, 2, 3), 100, 64, 1, 1),
    ],
)
def test_layouts(shape, limit, multiple, each, files):
    layout = Layout.of(shape, limit, multiple)
    assert (layout.each, layout.files) == (each, files)
    assert [row for number in range(files) for row in layout.part(number)] == list(range(shape[0]))


@pytest.fixture(scope="module")
def shapes_env(tmp_path_factory):
    """Environments of the captioner of Shapes over a table in one file, and the same table in parts."""
    folder = tmp_path_factory.mktemp("env")
    speaker = load_captioner("shapes")
    write_images(folder, 150, speaker.vocabulary)
    before = os.environ.get("GLIMPSE_CACHE")
    os.environ["GLIMPSE_CACHE"] = str(folder / "cache")
    try:
        env = GlimpseVectorEnv(8, "webdataset", captioner=speaker, observe="index", data_root=folder)
    finally:
        os.environ.pop("GLIMPSE_CACHE") if before is None else os.environ.update(GLIMPSE_CACHE=before)
    dataset = make_dataset("webdataset", "train", folder)
    small = 64 * 49 * 64 * 2
    return env, open_features(dataset, speaker.encoder, folder=folder / "parts", progress=False, shard_bytes=small)


def played(env, mode_steps=60):
    seen = [env.reset(seed=3)[0]]
    rng = np.random.default_rng(0)
    for _ in range(mode_steps):
        observation, reward, ended, _, _ = env.step(rng.integers(49, size=8))
        seen.append({**observation, "reward": reward, "ended": ended})
    assert sum(one["ended"].sum() for one in seen[1:]) > 8
    return seen


def test_environments_over_a_table_in_parts_are_the_same(shapes_env):
    env, table = shapes_env
    assert not env.features.on_disk
    assert table.on_disk
    expected, found = played(env), played(over(env, table))
    for one, other in zip(expected, found, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("room", [0, 3, 10])
def test_environments_with_room_for_few_rows_are_the_same(shapes_env, monkeypatch, room):
    env, table = shapes_env
    monkeypatch.setattr(tables, "ROOM", room * 49 * 64 * 2)
    expected, found = played(env), played(over(env, pickle.loads(pickle.dumps(table))))
    for one, other in zip(expected, found, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_what_is_kept_is_not_read_again(table, expected, tmp_path, monkeypatch):
    rows, locations = np.array([3, 64, 199, 3]), np.array([0, 48, 7, 9])
    table.keep(rows, CPU)
    monkeypatch.setattr(shard_module, "_read_at", None)
    table.keep(rows[:2], CPU)
    assert np.array_equal(table.at(rows, locations), expected[rows, locations])
    assert np.array_equal(table[rows], expected[rows])
    assert np.array_equal(table[64], expected[64])
    table[3][:] = 0  # a fresh array
    assert table[3].any()
    with pytest.raises(TypeError):
        table.at(np.array([3, 4]), locations[:2])
    monkeypatch.undo()
    assert np.array_equal(table.at(np.array([3, 4]), locations[:2]), expected[[3, 4], locations[:2]])
    with pytest.raises(IndexError):
        table.keep(np.array([IMAGES]), CPU)
    assert np.array_equal(table[[[3, 4], [5, 199]]], expected[[[3, 4], [5, 199]]])  # some of them are kept


def test_of_a_table_that_is_on_a_device_no_row_is_kept_for_it(table):
    table.on(CPU)
    table.keep(np.array([3, 64]), CPU)
    assert (table._recent.find(np.array([3, 64])) < 0).all()


def test_a_row_that_could_not_be_read_is_not_kept(table, expected, tmp_path):
    last = table.shards.layout.path(table.shards.whole, 3)
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    with pytest.raises(FeatureTableError, match="delete it and it is built again"):
        table.keep(np.array([3, 199]), CPU)
    last.write_bytes(content)
    assert np.array_equal(table[[3, 199]], expected[[3, 199]])


def test_first_states_that_are_not_kept_are_the_same(monkeypatch):
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=5, feature_dim=6, hidden_dim=7)
    table = FeatureTable(np.random.default_rng(0).normal(size=(20, 49, 6)).astype(np.float16))
    decoder = FrozenDecoder(CaptionDecoder(config))
    rows = np.array([3, 19, 3])
    kept = starts.StartTable(decoder, table)
    expected = kept[rows]
    monkeypatch.setattr(starts, "KEPT_BYTES", 0)
    bare = starts.StartTable(decoder, table)
    for _ in range(2):
        for one, other, again in zip(expected, bare[rows], kept[rows], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
            assert torch.equal(one, again)
    many = np.resize(np.arange(20), 3 * starts.CHUNK + 5)
    for one, other in zip(kept[many], bare[many], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert bare[many[:0]].hidden.shape == (0, 7)
