"""Several processes at once: one table, one run in a folder, environments in processes of their own."""

from __future__ import annotations

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
from stable_baselines3.common.vec_env import SubprocVecEnv

from glimpse_env.datasets import make_dataset
from glimpse_env.encoder import CNNEncoder, EncoderConfig
from glimpse_env.features import open_features, read_table, table_path
from glimpse_env.files import atomic_path
from train.common import RunDirectory

SPAWN = multiprocessing.get_context("spawn")
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


def started(target, *arguments):
    process = SPAWN.Process(target=target, args=arguments)
    process.start()
    return process


def test_processes_that_miss_one_table_end_with_one(photographs, tmp_path):
    results = SPAWN.Queue()
    readers = [started(read_all, photographs, tmp_path / "cache", results) for _ in range(3)]
    read = [results.get(timeout=120) for _ in readers]
    for reader in readers:
        reader.join(60)
        assert reader.exitcode == 0
    images, encoder = make_dataset("flickr8k", "val", photographs), make_encoder()
    whole = read_table(table_path(images, encoder, tmp_path / "cache"), images, encoder)
    expected = np.concatenate([encoder.encode([images.image(row)]).half().numpy() for row in range(PHOTOS)])
    np.testing.assert_allclose(np.asarray(whole, np.float32), expected.astype(np.float32), atol=2e-3)
    assert {total for _, total in read} == {float(np.asarray(whole, np.float64).sum())}
    assert len({process for process, _ in read}) == 3
    assert not [left for left in (tmp_path / "cache").iterdir() if left.suffix == ".partial"]


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
    size = rows * 2 * encoder.config.num_locations * encoder.config.feature_dim
    if ready is not None:
        ready.wait(120)
    table = open_features(images, encoder, folder=cache, progress=False, shard_bytes=size)
    results.put((len(drawn), float(np.asarray(table, np.float64).sum())))


def test_processes_that_miss_a_table_in_parts_build_it_together(photographs, tmp_path):
    results, alone, ready = SPAWN.Queue(), SPAWN.Queue(), SPAWN.Barrier(3)
    builders = [started(build_parts, photographs, tmp_path / "cache", results, ready) for _ in range(3)]
    built = [results.get(timeout=120) for _ in builders]
    for builder in builders:
        builder.join(60)
        assert builder.exitcode == 0
    assert sum(drawn for drawn, _ in built) == PHOTOS  # each image once
    assert sum(drawn > 0 for drawn, _ in built) >= 2
    build_parts(photographs, tmp_path / "alone", alone)
    assert {total for _, total in built} == {alone.get(timeout=60)[1]}
    assert not [left for left in (tmp_path / "cache").iterdir() if left.name.endswith((".partial", ".plan.json"))]


def test_one_that_helped_and_was_killed_leaves_its_part_to_the_others(photographs, tmp_path):
    results, ready = SPAWN.Queue(), SPAWN.Barrier(2)
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
    assert not [left for left in (tmp_path / "cache").iterdir() if left.name.endswith((".partial", ".plan.json"))]


def test_a_builder_that_was_killed_leaves_nothing_to_the_next(photographs, tmp_path):
    cache, results = tmp_path / "cache", SPAWN.Queue()
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
    directory = RunDirectory(path, {"seed": 0}, resume=False)
    directory.save({"epoch": 1})
    with atomic_path(path / "weights") as partial:
        partial.write_text("half")
        holds.set()
        time.sleep(600)


def test_two_runs_in_one_folder_refuse_each_other_until_the_first_ends(tmp_path):
    holds = SPAWN.Event()
    first = started(hold, tmp_path / "run", holds)
    assert holds.wait(60)
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"another process is at work in .*choose another --run-dir"):
            RunDirectory(tmp_path / "run", {"seed": 0}, resume=resume)
    assert list((tmp_path / "run").glob(".weights.*"))  # nor did they sweep what the first is writing
    os.kill(first.pid, signal.SIGKILL)
    first.join(60)
    second = RunDirectory(tmp_path / "run", {"seed": 0}, resume=True)
    assert second.restore() == {"epoch": 1}
    assert not list((tmp_path / "run").glob(".weights.*"))
    second.close()


OTHERS = ["Glimpse/ShapesLarge-v0", "Glimpse/Flickr8k-v0"]
IDS = ["Glimpse/Shapes-v0", *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)]


def make(env_id):
    return lambda: gym.make(f"glimpse_env:{env_id}", split="val", observe="index")


def rollout(step, reset, actions):
    seen = [reset()]
    for action in actions:
        observation, reward, ended = step(action)
        seen.append((observation["word"].copy(), np.asarray(reward).copy(), np.asarray(ended).copy()))
    return seen[1:]


@pytest.mark.parametrize("env_id", IDS)
def test_environments_in_processes_of_their_own_say_the_same(env_id, request):
    if "Flickr8k" in env_id:
        request.getfixturevalue("flickr8k_root")
    same_step = gym.vector.AutoresetMode.SAME_STEP
    together = gym.make_vec(env_id, num_envs=2, split="val", observe="index", autoreset_mode=same_step)
    actions = np.random.default_rng(0).integers(0, together.single_action_space.n, (40, 2))
    expected = rollout(lambda action: together.step(action)[:3], lambda: together.reset(seed=5)[0], actions)
    assert any(ended.any() for _, _, ended in expected)
    apart = gym.vector.AsyncVectorEnv([make(env_id)] * 2, autoreset_mode=same_step, context="spawn")
    subprocesses = SubprocVecEnv([make(env_id)] * 2, start_method="spawn")
    subprocesses.seed(5)
    try:
        found = [
            rollout(lambda action: apart.step(action)[:3], lambda: apart.reset(seed=5)[0], actions),
            rollout(lambda action: subprocesses.step(action)[:3], subprocesses.reset, actions),
        ]
    finally:
        apart.close()
        subprocesses.close()
    for way in found:
        for (words, rewards, ended), (others, earned, over) in zip(expected, way, strict=True):
            np.testing.assert_array_equal(words, others)
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
