"""Stable-Baselines3's view of the vector environment: the same episodes, in its own form, trained on."""

from __future__ import annotations

import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from agents.sb3 import GlimpseVecEnv
from glimpse_env.envs.single import GlimpseEnv

N = 3
TASK = {"split": "val", "observe": "index", "max_caption_length": 5}


@pytest.fixture
def envs(captioner):
    return GlimpseVecEnv("Glimpse/Shapes-v0", N, captioner=captioner, **TASK)


def test_it_is_stable_baselines_own_vector_of_singles(envs, captioner):
    singles = DummyVecEnv([lambda: GlimpseEnv(captioner=captioner, **TASK) for _ in range(N)])
    assert isinstance(envs, VecEnv)
    assert envs.observation_space == singles.observation_space
    assert envs.action_space == singles.action_space
    for info in (envs, singles):
        info.seed(4)
    mine, theirs = envs.reset(), singles.reset()
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(15):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], atol=2e-5)
        actions = rng.integers(49, size=N)
        (mine, *results), (theirs, *expected) = envs.step(actions), singles.step(actions)
        np.testing.assert_allclose(results[0], expected[0], atol=1e-6)
        assert results[0].dtype == np.float32
        assert np.array_equal(results[1], expected[1])
        for ended, info, expected_info in zip(results[1], results[2], expected[2], strict=True):
            assert info["TimeLimit.truncated"] is False
            assert ("terminal_observation" in info) == ended
            if ended:
                ends += 1
                assert (info["caption"], info["image_id"]) == (expected_info["caption"], expected_info["image_id"])
                np.testing.assert_allclose(info["bleu"], expected_info["bleu"], atol=1e-9)
                for name, array in info["terminal_observation"].items():
                    np.testing.assert_allclose(array, expected_info["terminal_observation"][name], atol=2e-5)
    assert ends >= N


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN, MaskablePPO])
def test_algorithms_train_on_it(envs, algorithm):
    options = {"learning_starts": 4, "train_freq": 4} if algorithm is DQN else {"n_steps": 8}
    model = algorithm("MultiInputPolicy", VecMonitor(envs), seed=0, **options)
    model.learn(48)
    assert model.num_timesteps >= 48
    assert len(model.ep_info_buffer) > 0


def test_images_are_chosen_for_one_reset(envs):
    envs.set_options([{"image": 4}, {}, {"image": 2}])
    first = envs.reset()["image"][:, 0]
    assert (first[0], first[2]) == (4, 2)
    envs.set_options({"image": 3})
    assert envs.reset()["image"][:, 0].tolist() == [3] * N
    envs.seed(1)
    assert envs.reset()["image"][:, 0].tolist() != [3] * N
    envs.set_options({"picture": 3})
    with pytest.raises(ValueError, match="unknown reset option 'picture'"):
        envs.reset()


def test_attributes_methods_and_frames(captioner):
    envs = GlimpseVecEnv("Glimpse/Shapes-v0", N, captioner=captioner, render_mode="rgb_array", **TASK)
    envs.reset()
    assert [image.dtype for image in envs.get_images()] == [np.uint8] * N
    assert envs.get_attr("render_mode") == ["rgb_array"] * N
    assert envs.get_attr("max_caption_length", [0, 2]) == [5, 5]
    assert envs.env_is_wrapped(VecMonitor) == [False] * N
    masks = envs.env_method("action_masks", indices=1)
    assert len(masks) == 1
    assert masks[0].all()
    with pytest.raises(AttributeError, match="nor its task has 'colour'"):
        envs.get_attr("colour")
    with pytest.raises(AttributeError, match="'split' cannot be set"):
        envs.set_attr("split", "test")
    with pytest.raises(AttributeError, match="have no method 'dance'"):
        envs.env_method("dance")
    with pytest.raises(ValueError, match=r"unknown environment 'Glimpse/Moon-v0'.*Glimpse/Shapes-v0"):
        GlimpseVecEnv("Glimpse/Moon-v0", N)
