"""Gymnasium's own wrappers on the environments: videos and statistics of episodes, single and vector."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, RecordVideo, RenderCollection
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorStatistics
from gymnasium.wrappers.vector import RecordVideo as VectorVideo

import glimpse_env  # noqa: F401 (registers the ids)

ID, STEPS = "Glimpse/Shapes-v0", 5


@pytest.fixture
def make(captioner_file):
    """Makes a short environment with the tiny captioner; a vector of ``count``."""

    def one(count=None, **options):
        options = {"split": "val", "captioner": str(captioner_file), "max_caption_length": STEPS, **options}
        return gym.make(ID, **options) if count is None else gym.make_vec(ID, num_envs=count, **options)

    return one


@pytest.fixture
def moviepy():
    """RecordVideo writes with moviepy: ``glimpse-env[video]``; in CI, ``make test-video``."""
    return pytest.importorskip("moviepy")


def frames_of(path):
    from moviepy import VideoFileClip

    with VideoFileClip(str(path)) as clip:
        return np.stack(list(clip.iter_frames())), clip.fps


def play(env, rng):
    """One episode; its info and its rewards."""
    rewards, ended = [], False
    while not ended:
        _, reward, ended, _, info = env.step(int(rng.integers(49)))
        rewards.append(reward)
    return info, rewards


def test_a_video_of_an_episode(make, moviepy, tmp_path):
    collected = RenderCollection(make(render_mode="rgb_array"), pop_frames=False)
    env = RecordVideo(make(render_mode="rgb_array"), str(tmp_path), episode_trigger=lambda n: n == 0)
    for recorder in (collected, env):
        recorder.reset(seed=3)
        play(recorder, np.random.default_rng(0))
    drawn = collected.render()
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    frames, fps = frames_of(video)
    assert fps == env.metadata["render_fps"]
    assert frames.shape[1:] == drawn[0].shape
    assert len(frames) == len(drawn) == 1 + STEPS
    for recorder, expected in zip(frames, drawn, strict=True):
        assert np.abs(recorder.astype(float) - expected).mean() < 12  # the codec's loss


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_video_of_a_vector(make, moviepy, tmp_path, mode):
    envs = make(count=4, render_mode="rgb_array", autoreset_mode=mode)
    envs = VectorVideo(envs, str(tmp_path), episode_trigger=lambda n: n == 0)
    envs.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(2 * STEPS):
        envs.step(rng.integers(49, size=4))
    envs.close()
    video = min(tmp_path.glob("*.mp4"))
    frames, _ = frames_of(video)
    single = make(count=1, render_mode="rgb_array")
    single.reset()
    height, width, _ = single.render()[0].shape
    assert frames[0].shape[0] * frames[0].shape[1] == 4 * height * width
    assert len(frames) >= STEPS
    for before, after in itertools.pairwise(frames[:STEPS]):
        assert not np.array_equal(before, after)


def test_statistics_of_episodes(make):
    env = RecordEpisodeStatistics(make(shaped=True))
    rng = np.random.default_rng(1)
    for seed in range(3):
        env.reset(seed=seed)
        info, rewards = play(env, rng)
        assert info["episode"]["r"] == pytest.approx(sum(rewards))
        assert info["episode"]["l"] == len(rewards)
    assert len(env.return_queue) == 3


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_statistics_of_a_vector(make, mode):
    envs = VectorStatistics(make(count=3, autoreset_mode=mode))
    envs.reset(seed=5)
    rng = np.random.default_rng(1)
    returns, statistics = np.zeros(3), []
    for _ in range(4 * STEPS):
        _, rewards, ended, _, infos = envs.step(rng.integers(49, size=3))
        returns += rewards
        for slot in ended.nonzero()[0]:
            statistics.append((infos["episode"]["r"][slot], returns[slot]))
            returns[slot] = 0
    assert len(statistics) >= 9
    for recorded, expected in statistics:
        assert recorded == pytest.approx(expected)


@pytest.mark.parametrize("attention", ["hard", "soft"])
@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_a_vector_shows_what_single_environments_show(make, attention, mode):
    envs = make(count=3, render_mode=mode, attention=attention, shaped=True)
    singles = [make(render_mode=mode, attention=attention, shaped=True) for _ in range(3)]
    envs.reset(seed=7)
    for slot, env in enumerate(singles):
        env.reset(seed=7 + slot)
    rng, ended = np.random.default_rng(2), np.zeros(3, bool)
    while not ended.all():
        actions = rng.integers(49, size=3) if attention == "hard" else rng.random((3, 49), np.float32)
        done = envs.step(actions)[2]
        for slot in (~ended).nonzero()[0]:
            singles[slot].step(actions[slot])
        frames = envs.render()
        for slot in (~ended).nonzero()[0]:
            assert np.array_equal(frames[slot], singles[slot].render())
        ended |= done


def test_pictures_go_back_with_the_state_of_a_vector(make):
    envs = make(count=2, render_mode="rgb_array")
    bare = envs.unwrapped
    envs.reset(seed=0)
    envs.step(np.array([3, 4]))
    state, before = bare.get_state(), envs.render()
    envs.step(np.array([30, 40]))
    bare.set_state(state)
    assert all(np.array_equal(frame, earlier) for frame, earlier in zip(envs.render(), before, strict=True))
    envs.step(np.array([5, 6]))
    bare.set_state(state)
    assert all(np.array_equal(frame, earlier) for frame, earlier in zip(envs.render(), before, strict=True))
