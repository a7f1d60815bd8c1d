"""The ids: registered once, made from anywhere, described as JSON."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import glimpse_env
from glimpse_env.datasets import WORLDS, find_world, registry
from glimpse_env.models.captioner import save_captioner, shipped_captioners
from glimpse_env.models.encoders.cnn import EncoderConfig
from glimpse_env.registration import register_environments
from tests.conftest import FEATURES, IDS, ROOT, SHAPES_CONFIGS, build_captioner
from tests.toy_world import CELL, CELLS, COLOURS, STRIPS, Strips, spec

EXPECTED = {
    "Glimpse/Shapes-v0": "shapes",
    "Glimpse/ShapesLarge-v0": "shapes-large",
    "Glimpse/Flickr8k-v0": "flickr8k",
    "Glimpse/Flickr30k-v0": "flickr30k",
    "Glimpse/Coco-v0": "coco",
    "Glimpse/WebDataset-v0": "webdataset",
}


def episode(env, seed=3):
    observation, _ = env.reset(seed=seed)
    words, rewards, ended = [int(observation["word"][0])], [], False
    rng = np.random.default_rng(seed)
    while not ended:
        observation, reward, ended, truncated, _ = env.step(int(rng.integers(49)))
        assert not truncated
        words.append(int(observation["word"][0]))
        rewards.append(reward)
    return words, rewards


def test_the_ids_are_the_contracts():
    assert IDS == EXPECTED
    ours = {name: spec.kwargs.get("dataset") for name, spec in gym.registry.items() if name.startswith("Glimpse/")}
    assert {name for name, dataset in ours.items() if dataset in EXPECTED.values()} == set(EXPECTED)  # not of tests


@pytest.mark.parametrize("name", EXPECTED)
def test_specs_are_data(name):
    spec = gym.spec(name)
    assert isinstance(spec.entry_point, str)
    assert isinstance(spec.vector_entry_point, (str, type(None)))
    assert spec.max_episode_steps is None
    assert spec.kwargs["dataset"] == EXPECTED[name]
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert json.loads(spec.to_json())["id"] == name


def test_registering_again_does_nothing():
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_environments()
    assert before.keys() == gym.registry.keys()
    assert all(gym.registry[name] is spec for name, spec in before.items())


def test_an_id_that_is_taken_is_left_alone():
    spec = gym.registry.pop("Glimpse/Coco-v0")
    try:
        gym.register("Glimpse/Coco-v0", entry_point="somebody.else:Env")
        register_environments()
        assert gym.spec("Glimpse/Coco-v0").entry_point == "somebody.else:Env"
    finally:
        gym.registry["Glimpse/Coco-v0"] = spec


WORLD = """
from glimpse_env import DatasetSpec, LocationGrid, register_world
from tests.toy_world import Strips

class Mine(Strips):
    name = "toy-mine"

fields = {"grid": LocationGrid((10,)), "image_size": (16, 160)}
register_world(DatasetSpec("toy-mine", "Glimpse/ToyMine-v0", lambda split, root: Mine(split), **fields))
"""


@pytest.fixture
def world_module(tmp_path, monkeypatch):
    """The name of a module that registers a world."""
    (tmp_path / "toy_mine.py").write_text(WORLD)
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy_mine"
    sys.modules.pop("toy_mine", None)
    registry._WORLDS.pop("toy-mine", None)
    registry._KEYS.pop("toy-mine", None)
    gym.registry.pop("Glimpse/ToyMine-v0", None)


def test_a_module_that_runs_again_replaces_its_world(world_module, tmp_path):
    first = importlib.import_module(world_module)
    world = find_world("toy-mine")
    glimpse_env.register_world(world)  # from another file; that changes nothing
    importlib.reload(first)
    assert find_world("toy-mine").open is not world.open
    runpy.run_path(str(tmp_path / "toy_mine.py"), run_name="__main__")
    assert gym.spec("Glimpse/ToyMine-v0").kwargs == {"dataset": "toy_mine:toy-mine"}
    (tmp_path / "toy_theirs.py").write_text(WORLD)
    with pytest.raises(ValueError, match="name 'toy-mine' is registered already"):
        importlib.import_module("toy_theirs")


def test_other_processes_import_the_module_of_a_world(tmp_path):
    path = tmp_path / "strips.safetensors"
    strips = EncoderConfig(image_size=(CELL, CELL * CELLS), grid=(CELLS,), feature_dim=FEATURES)
    save_captioner(build_captioner(words=tuple(COLOURS), sees=strips, dataset=STRIPS.name), path)
    assert gym.spec(STRIPS.env_id).kwargs == {"dataset": "tests.toy_world:toy-strips"}
    context = {"context": "spawn"}
    env = gym.make_vec(STRIPS.env_id, 2, vectorization_mode="async", vector_kwargs=context, captioner=str(path))
    try:
        _, infos = env.reset(seed=0)
        assert infos["action_mask"].shape == (2, CELLS)
    finally:
        env.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "CartPole-v1"}, r"env_id 'CartPole-v1' is registered already, of gymnasium.*; choose another"),
        ({"metrics": ("nope",)}, r"unknown metric 'nope'; known are: bleu"),
    ],
)
def test_a_world_that_is_refused_is_not_there(changes, message):
    world = spec(Strips, **{"env_id": "Glimpse/ToyRefused-v0", "name": "toy-refused", **changes})
    with pytest.raises(ValueError, match=message):
        glimpse_env.register_world(world)
    assert "toy-refused" not in WORLDS
    assert "Glimpse/ToyRefused-v0" not in gym.registry


def test_a_made_environment_is_described_and_made_again_from_json(captioner_file):
    arguments = {"split": "val", "captioner": str(captioner_file), "observe": "index", "max_caption_length": 7}
    env = gym.make("Glimpse/Shapes-v0", **arguments)
    assert isinstance(env.unwrapped, glimpse_env.GlimpseEnv)
    described = EnvSpec.from_json(env.spec.to_json())
    assert described.kwargs == {"dataset": "shapes", **arguments}
    again = gym.make(described)
    assert again.unwrapped.dataset.split == "val"
    assert again.unwrapped.task.max_caption_length == 7
    assert episode(again) == episode(env)


def test_no_time_limit_is_wrapped_around(captioner_file):
    env = gym.make("Glimpse/Shapes-v0", captioner=str(captioner_file), max_caption_length=3)
    while env is not env.unwrapped:
        assert not isinstance(env, gym.wrappers.TimeLimit)
        env = env.env


@pytest.mark.parametrize("name", [name for name, dataset in EXPECTED.items() if dataset not in SHAPES_CONFIGS])
def test_ids_without_a_captioner_ask_for_one(name, monkeypatch):
    if EXPECTED[name] in shipped_captioners():
        pytest.skip(f"a captioner of {EXPECTED[name]} is shipped")
    monkeypatch.delenv("GLIMPSE_DATA", raising=False)
    with pytest.raises(ValueError, match=rf"no captioner is shipped for {EXPECTED[name]}; .*captioner="):
        gym.make(name)


@pytest.mark.parametrize("name", [name for name, dataset in EXPECTED.items() if dataset not in SHAPES_CONFIGS])
def test_ids_without_data_ask_for_it(name, captioner_file, monkeypatch):
    monkeypatch.delenv("GLIMPSE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=rf"{EXPECTED[name]} .*data_root=.*GLIMPSE_DATA"):
        gym.make(name, captioner=str(captioner_file))


def test_a_fresh_process_makes_it_from_the_module_prefix(captioner_file, tmp_path):
    program = f"""
import sys, gymnasium as gym
assert "glimpse_env" not in sys.modules
env = gym.make("glimpse_env:Glimpse/Shapes-v0", captioner={str(captioner_file)!r})
assert not any(name in sys.modules for name in ("stable_baselines3", "tyro", "matplotlib", "agents", "train"))
words = [int(env.reset(seed=3)[0]["word"][0])]
ended = False
while not ended:
    observation, reward, ended, truncated, info = env.step(len(words) % 49)
    words.append(int(observation["word"][0]))
print(words, reward, info["image_id"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    env = gym.make("Glimpse/Shapes-v0", captioner=str(captioner_file))
    words, ended = [int(env.reset(seed=3)[0]["word"][0])], False
    while not ended:
        observation, reward, ended, _, info = env.step(len(words) % 49)
        words.append(int(observation["word"][0]))
    assert ran.stdout.strip() == f"{words} {reward} {info['image_id']}"


def test_public_names_exist():
    for name in glimpse_env.__all__:
        assert getattr(glimpse_env, name) is not None
