"""Several processes at once: one table, one run in a folder, environments in processes of their own."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.datasets import make_dataset
from glimpse_env.features.build import open_features, read_table, table_path
from glimpse_env.features.table import FeatureTableError
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from tests.conftest import IDS
from tests.photographs import write_photographs
from train.common.options import CommonOptions
from train.common.run_directory import RunDirectory

WORKERS = multiprocessing.get_context("forkserver")
WORKERS.set_forkserver_preload(["glimpse_env.features", "glimpse_env.models.captioner"])  # torch is imported once
multiprocessing.set_forkserver_preload(["glimpse_env.envs.single", "stable_baselines3"])  # imported once: 2 s a process
PHOTOS = 150  # three chunks


def make_encoder():
    torch.manual_seed(0)
    return CNNEncoder(EncoderConfig(image_size=28, feature_dim=6)).requires_grad_(False)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "data"
    (folder / "Images").mkdir(parents=True)
    names = [f"{number}.png" for number in range(PHOTOS)]
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(folder / "Images" / name)
    images = [{"filename": name, "split": "val", "sentences": [{"raw": "a photo"}]} for name in names]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return folder


def read_all(data, cache, results):
    torch.set_num_threads(1)
    table = open_features(make_dataset("flickr8k", "val", data), make_encoder(), folder=cache, progress=False)
    results.put((os.getpid(), float(np.asarray(table, np.float64).sum())))


def assert_whole(table, images, encoder):
    expected = np.concatenate([encoder.encode([images.image(row)]).half().numpy() for row in range(PHOTOS)])
    np.testing.assert_allclose(np.asarray(table, np.float32), expected.astype(np.float32), atol=2e-3)


def started(target, *arguments):
    process = WORKERS.Process(target=target, args=arguments)
    process.start()
    return process


def test_processes_that_miss_one_table_end_with_one(photographs, tmp_path):
    results = WORKERS.Queue()
    readers = [started(read_all, photographs, tmp_path / "cache", results) for _ in range(3)]
    read = [results.get(timeout=120) for _ in readers]
    for reader in readers:
        reader.join(60)
        assert reader.exitcode == 0
    images, encoder = make_dataset("flickr8k", "val", photographs), make_encoder()
    table = read_table(table_path(images, encoder, tmp_path / "cache"), images, encoder)
    assert_whole(table, images, encoder)
    assert {total for _, total in read} == {float(np.asarray(table, np.float64).sum())}
    assert len({process for process, _ in read}) == 3
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix == ".partial"]


def file_bytes(encoder, rows):
    return rows * 2 * encoder.num_locations * encoder.feature_dim


def build_parts(data, cache, results, ready=None, rows=64):
    """As ``read_all``, of a table in parts of so many rows, from a slow disk; all begin when all are ready."""
    torch.set_num_threads(1)
    images, drawn = make_dataset("flickr8k", "val", data), []
    read = images.image

    def slowly(row):
        drawn.append(row)
        time.sleep(0.01)
        return read(row)

    images.image = slowly
    encoder = make_encoder()
    size = file_bytes(encoder, rows)
    if ready is not None:
        ready.wait(120)
    table = open_features(images, encoder, folder=cache, progress=False, shard_bytes=size)
    results.put((len(drawn), float(np.asarray(table, np.float64).sum())))


def test_processes_that_miss_a_table_in_parts_build_it_together(photographs, tmp_path):
    results, alone, ready = WORKERS.Queue(), WORKERS.Queue(), WORKERS.Barrier(3)
    builders = [started(build_parts, photographs, tmp_path / "cache", results, ready) for _ in range(3)]
    built = [results.get(timeout=120) for _ in builders]
    for builder in builders:
        builder.join(60)
        assert builder.exitcode == 0
    assert sum(drawn for drawn, _ in built) == PHOTOS  # each image once
    assert sum(drawn > 0 for drawn, _ in built) >= 2
    build_parts(photographs, tmp_path / "alone", alone)
    assert {total for _, total in built} == {alone.get(timeout=60)[1]}
    assert not [file for file in (tmp_path / "cache").iterdir() if file.name.endswith((".partial", ".plan.json"))]


@pytest.mark.parametrize("rows", [64, PHOTOS], ids=["in parts", "in one file"])
def test_a_reader_beside_a_builder_sees_nothing_or_the_whole_table(photographs, tmp_path, rows):
    cache, results = tmp_path / "cache", WORKERS.Queue()
    images, encoder = make_dataset("flickr8k", "val", photographs), make_encoder()
    path, size = table_path(images, encoder, cache), file_bytes(encoder, rows)
    builder = started(build_parts, photographs, cache, results, None, rows)
    refused, copies = set(), []  # how many files of rows there were when nothing was to be seen; copies of the table
    while len(copies) < 20:  # some more beside the last that the builder does
        assert copies or builder.is_alive()
        files = len(list(cache.glob(f"{path.stem}*.npy")))
        try:
            copies.append(np.array(read_table(path, images, encoder, shard_bytes=size)))
        except FeatureTableError:
            assert not copies  # what is whole stays
            refused.add(files)
    builder.join(60)
    assert builder.exitcode == 0
    assert refused >= ({0, 1} if rows < PHOTOS else {0})  # while parts were there, too
    assert_whole(copies[0], images, encoder)
    assert all(np.array_equal(copies[0], again) for again in copies)
    assert float(copies[0].astype(np.float64).sum()) == results.get(timeout=60)[1]


def test_one_that_helped_and_was_killed_leaves_its_part_to_the_others(photographs, tmp_path):
    results, ready = WORKERS.Queue(), WORKERS.Barrier(2)
    first, second = (started(build_parts, photographs, tmp_path / "cache", results, ready) for _ in range(2))
    while len(list((tmp_path / "cache").glob(".*-of-*.partial"))) < 2:  # both are at a part
        assert first.is_alive() or second.is_alive()
        time.sleep(0.005)
    second.kill()
    second.join()
    _, total = results.get(timeout=120)
    first.join(60)
    assert first.exitcode == 0
    build_parts(photographs, tmp_path / "alone", results)
    assert results.get(timeout=60)[1] == total
    assert not [file for file in (tmp_path / "cache").iterdir() if file.name.endswith((".partial", ".plan.json"))]


def test_a_builder_that_was_killed_leaves_nothing_to_the_next(photographs, tmp_path):
    cache, results = tmp_path / "cache", WORKERS.Queue()
    builder = started(build_parts, photographs, cache, results, None, PHOTOS)  # slowly enough to be caught at it
    while not list(cache.glob(".*.partial")):
        assert builder.is_alive()
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(60)
    assert list(cache.glob(".*.partial"))
    images, encoder = make_dataset("flickr8k", "val", photographs), make_encoder()
    table = open_features(images, encoder, folder=cache, progress=False)
    assert len(table) == PHOTOS
    assert not list(cache.glob(".*.partial"))


def hold(path, holds):
    directory = RunDirectory(path, CommonOptions(), resume=False)
    directory.save({"epoch": 1})
    with atomic_path(path / "weights") as partial:
        partial.write_text("half")
        holds.set()
        time.sleep(600)


def test_two_runs_in_one_folder_refuse_each_other_until_the_first_ends(tmp_path):
    holds = WORKERS.Event()
    first = started(hold, tmp_path / "run", holds)
    assert holds.wait(60)
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"another process is at work in .*choose another --run-dir"):
            RunDirectory(tmp_path / "run", CommonOptions(), resume=resume)
    assert list((tmp_path / "run").glob(".weights.*"))  # nor did they sweep what the first is writing
    os.kill(first.pid, signal.SIGKILL)
    first.join(60)
    second = RunDirectory(tmp_path / "run", CommonOptions(), resume=True)
    assert second.restore() == {"epoch": 1}
    assert not list((tmp_path / "run").glob(".weights.*"))
    second.close()


@pytest.fixture(scope="module")
def photographs_of_all(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def make(env_id, **options):
    return functools.partial(gym.make, f"glimpse_env:{env_id}", split="val", observe="index", **options)


def rollout(envs, actions):
    """Words, rewards and ends of a vector of Gymnasium's or of Stable-Baselines3's environments."""
    steps = []
    try:
        if isinstance(envs, VecEnv):
            envs.seed(5)
            envs.reset()
        else:
            envs.reset(seed=5)
        for action in actions:
            observation, reward, ended = envs.step(action)[:3]
            steps.append((observation["word"].copy(), np.asarray(reward).copy(), np.asarray(ended).copy()))
    finally:
        envs.close()
    return steps


@pytest.mark.parametrize("env_id", IDS)
def test_environments_in_processes_of_their_own_say_the_same(env_id, photographs_of_all, captioner_file):
    options = {"captioner": str(captioner_file), "data_root": str(photographs_of_all)}
    makers = [make(env_id, **options)] * 2
    same_step = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    together = gym.make_vec(env_id, num_envs=2, split="val", observe="index", **same_step, **options)
    actions = np.random.default_rng(0).integers(0, together.single_action_space.n, (60, 2))
    expected = rollout(together, actions)
    assert any(ended.any() for _, _, ended in expected)
    assert len({tuple(words.ravel()) for words, _, _ in expected}) > 5
    for make_vector in (
        functools.partial(gym.vector.SyncVectorEnv, **same_step),
        functools.partial(gym.vector.AsyncVectorEnv, context="forkserver", **same_step),
        DummyVecEnv,
        functools.partial(SubprocVecEnv, start_method="forkserver"),
    ):
        for (words, rewards, ended), (their_words, earned, over) in zip(
            expected, rollout(make_vector(makers), actions), strict=True
        ):
            np.testing.assert_array_equal(words, their_words)
            np.testing.assert_allclose(rewards, earned, rtol=1e-6)
            np.testing.assert_array_equal(ended, over)


def test_the_cache_of_shapes_is_filled_by_all(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path))
    envs = gym.vector.AsyncVectorEnv([make("Glimpse/Shapes-v0")] * 2, context="spawn")
    envs.reset(seed=0)
    for _ in range(30):
        envs.step(envs.action_space.sample())
    envs.close()
    files = sorted(path.name for path in Path(tmp_path).iterdir() if path.suffix == ".npy")
    assert len(files) == 2  # values and checksums
