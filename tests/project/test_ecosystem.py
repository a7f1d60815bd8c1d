"""Libraries that people bring along: what they see is the environment, and they train on it.

Gymnasium's recorders, RecordEpisodeStatistics and RecordVideo, have a file of their own, test_recording.py.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import glimpse_env  # noqa: F401 (registers the ids)
from agents import load_agent
from agents.sb3 import GlimpsePolicy, GlimpseVecEnv
from tests.conftest import ROOT

ID = "Glimpse/Shapes-v0"
EXAMPLES = ROOT / "docs" / "examples"


def scalars(folder: Path) -> dict[str, list[float]]:
    """What the one run below a folder wrote for TensorBoard, by name."""
    (events,) = folder.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events.parent))
    board.Reload()
    return {name: [one.value for one in board.Scalars(name)] for name in board.Tags()["scalars"]}


class TestStableBaselines3:
    @pytest.mark.parametrize("observe", ["features", "index", "glimpsed"])
    def test_its_checker_asks_for_a_policy_that_reads_annotations_and_nothing_else(self, observe, recwarn):
        check_env(gym.make(ID, split="val", observe=observe).unwrapped)
        said = [str(warning.message) for warning in recwarn if "stable_baselines3" in warning.filename]
        assert len(said) == (observe != "index")
        assert all("features has an unconventional shape" in one and "use a custom policy" in one for one in said)

    def test_evaluate_policy_is_what_an_agent_earns_by_hand(self):
        env = Monitor(gym.make(ID, split="test", observe="index"))
        oracle = load_agent("oracle", env)
        returns, lengths = evaluate_policy(oracle, env, n_eval_episodes=5, return_episode_rewards=True)
        assert returns == [1.0] * 5
        assert all(length > 8 for length in lengths)

    def test_evaluate_policy_counts_the_episodes_of_a_vector(self):
        envs = VecMonitor(GlimpseVecEnv(ID, 4, split="test", observe="index"))
        agent = load_agent("hard", envs.unwrapped.env)
        returns, lengths = evaluate_policy(agent, envs, n_eval_episodes=8, return_episode_rewards=True)
        assert len(returns) == len(lengths) == 8
        assert np.mean(returns) > 0.8

    def test_a_policy_is_evaluated_saved_and_loaded(self, tmp_path):
        train = VecMonitor(GlimpseVecEnv(ID, 8, split="val"))
        model = PPO(GlimpsePolicy, train, n_steps=8, batch_size=32, tensorboard_log=str(tmp_path), seed=0)
        model.learn(256)
        written = scalars(tmp_path)
        assert {"rollout/ep_rew_mean", "train/value_loss", "train/entropy_loss"} <= set(written)
        assert all(0 <= reward <= 1 for reward in written["rollout/ep_rew_mean"])
        model.save(tmp_path / "model")
        again = PPO.load(tmp_path / "model", env=train)
        observation = train.reset()
        expected, _ = model.predict(observation, deterministic=True)
        assert np.array_equal(again.predict(observation, deterministic=True)[0], expected)


class TestCleanRL:
    TINY = ("--total-timesteps", "512", "--num-envs", "8", "--num-steps", "16", "--num-minibatches", "4")

    def run(self, folder: Path, *options: str) -> str:
        command = [sys.executable, EXAMPLES / "cleanrl_ppo.py", *options]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_metrics_have_their_usual_names(self, tmp_path):
        printed = self.run(tmp_path, *self.TINY, "--eval-scenes", "10")
        written = scalars(tmp_path)
        charts = {"episodic_return", "episodic_length", "learning_rate", "SPS"}
        losses = {"value_loss", "policy_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac"}
        names = {f"charts/{name}" for name in charts} | {f"losses/{name}" for name in losses | {"explained_variance"}}
        assert set(written) == names | {"eval/episodic_return"}
        assert len(written["losses/value_loss"]) == 4
        rates = [3e-3 * (1 - iteration / 4) for iteration in range(4)]
        assert written["charts/learning_rate"] == pytest.approx(rates)
        (shown,) = re.findall(r"greedy on 10 test scenes: mean return (\S+)", printed)
        assert float(shown) == pytest.approx(written["eval/episodic_return"][0], abs=6e-4)

    def test_greedy_returns_are_those_of_single_environments(self):
        module = load_example("cleanrl_ppo")
        env = gym.make(ID, split="test")
        agent = module.Agent(env.observation_space)
        args = module.Args(eval_scenes=6)
        returns = []
        for image in range(6):
            observation, _ = env.reset(options={"image": image})
            earned, ended = 0.0, False
            while not ended:
                batch = {name: torch.as_tensor(part)[None] for name, part in observation.items()}
                observation, reward, ended, _, _ = env.step(int(agent.logits(batch).argmax()))
                earned += reward
            returns.append(earned)
        assert module.evaluate(agent, args, torch.device("cpu")) == pytest.approx(np.mean(returns), abs=1e-6)

    @pytest.mark.slow
    def test_it_learns(self, tmp_path):
        printed = self.run(tmp_path, "--total-timesteps", "100000")
        (reached,) = re.findall(r"mean return (\S+)", printed)
        assert float(reached) > 0.55  # random glimpses earn 0.36
        returns = scalars(tmp_path)["charts/episodic_return"]
        assert returns[-1] > returns[0] + 0.15


class TestTorchRL:
    @pytest.fixture(autouse=True)
    def torchrl(self):
        pytest.importorskip("torchrl")

    @pytest.mark.parametrize("attention", ["hard", "soft"])
    @pytest.mark.parametrize("observe", ["features", "index", "glimpsed"])
    def test_the_environment_is_what_its_specs_say(self, attention, observe):
        from torchrl.envs import GymEnv, check_env_specs

        check_env_specs(GymEnv(ID, split="val", attention=attention, observe=observe), seed=0)

    def test_a_rollout_is_an_episode(self):
        from torchrl.envs import GymEnv, RewardSum, TransformedEnv

        env = TransformedEnv(GymEnv(ID, split="test", categorical_action_encoding=True), RewardSum())
        env.set_seed(0)
        torch.manual_seed(0)
        rollout = env.rollout(50)
        locations = rollout["action"].tolist()
        assert rollout["next", "done"].flatten().tolist() == [False] * (len(locations) - 1) + [True]
        assert rollout["features"].shape == (len(locations), 49, 64)
        total = rollout["next", "episode_reward"][-1].item()
        image = int((env.base_env._env.unwrapped.features == rollout["features"][0].numpy()).all((1, 2)).argmax())
        single = gym.make(ID, split="test")
        single.reset(options={"image": image})
        rewards = [single.step(location)[1] for location in locations]
        assert sum(rewards) == pytest.approx(total, abs=1e-6)
        assert total > 0


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestNumpyToTorch:
    @pytest.fixture
    def example(self, monkeypatch):
        """The example, which teaches Gymnasium's conversion about text; undone afterwards."""
        conversion = pytest.importorskip("gymnasium.wrappers.array_conversion", reason="needs array-api-compat")
        convert = conversion.array_conversion
        before = convert.dispatch(str), convert.dispatch(np.ndarray)
        yield load_example("torch_tensors")
        for kind, function in zip((str, np.ndarray), before, strict=True):
            convert.register(kind, function)

    def test_an_episode_in_tensors_is_an_episode(self, example):
        env = example.NumpyToTorch(gym.make(ID, split="val"))
        plain = gym.make(ID, split="val")
        (observation, _), (expected, _) = env.reset(seed=1), plain.reset(seed=1)
        ended = False
        while not ended:
            for name, part in expected.items():
                assert torch.equal(observation[name], torch.as_tensor(part))
            observation, reward, ended, _, info = env.step(torch.tensor(11))
            expected, theirs, done, _, told = plain.step(11)
            assert (reward, ended) == (theirs, done)
        assert (info["caption"], info["image_id"]) == (told["caption"], told["image_id"])
        assert torch.equal(info["bleu"], torch.as_tensor(told["bleu"]))

    @pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
    def test_a_vector_in_tensors_is_the_vector(self, example, mode):
        options = {"num_envs": 3, "split": "val", "autoreset_mode": mode}
        envs = example.VectorNumpyToTorch(gym.make_vec(ID, **options))
        plain = gym.make_vec(ID, **options)
        envs.reset(seed=2), plain.reset(seed=2)
        captions = 0
        for step in range(40):
            locations = np.array([step, 7, 48 - step])
            observation, rewards, ended, _, infos = envs.step(torch.as_tensor(locations))
            expected, theirs, done, _, told = plain.step(locations)
            assert all(torch.equal(observation[name], torch.as_tensor(part)) for name, part in expected.items())
            assert torch.equal(rewards, torch.as_tensor(theirs))
            assert torch.equal(ended, torch.as_tensor(done))
            found, wanted = (one.get("final_info", one).get("caption", ()) for one in (infos, told))
            assert list(found) == list(wanted)
            captions += sum(caption is not None for caption in found)
        assert captions >= 3

    def test_the_example_plays(self, example):
        assert len(example.one()["caption"].split()) > 3
        assert len(example.many(4)) >= 4


def test_the_metrics_of_a_run_are_the_same_in_tensorboard_and_csv(tmp_path):
    options = "--steps 256 --num-envs 8 --n-steps 16 --limit 5 --run-dir run"
    command = [sys.executable, "-m", "train.sb3", *options.split()]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    written = scalars(tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["algo"] == "ppo"
    for name, value in last.items():
        if name != "step":
            assert written[name][-1] == pytest.approx(float(value), rel=1e-4), name
