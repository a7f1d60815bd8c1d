"""RLlib: the module points as the policy does, runners step the native vector, runs are kept, resumed and survive.

Needs Ray, which wants a gymnasium of its own: `make test-rllib`.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="could not import 'ray': `make test-rllib` has it")

from ray.cluster_utils import Cluster
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from agents.loading import find_agent
from agents.rllib import GlimpseModule
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.models.captioner import captioner_path
from tests.conftest import ROOT
from tests.toy_world import STRIPS
from train.common.ray_cluster import cluster
from train.common.run_directory import RunDirectory
from train.evaluate import evaluation as evaluate
from train.rllib.options import Options, env_config, resolve_defaults
from train.rllib.trainer import Trainer, configure, main

TINY = {"num_envs": 4, "n_steps": 8, "limit": 8, "attention_dim": 8, "threads": 1}


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def ray_here():
    with cluster(None, 3):
        yield


@pytest.mark.parametrize("prefix", ["", "tests.toy_world:"])
def test_runners_import_the_module_of_a_world(prefix):
    config = configure(resolve_defaults(Options(env=f"{prefix}{STRIPS.env_id}")))
    assert config.env == "tests.toy_world:Glimpse/ToyStrips-v0"
    assert config.rl_module_spec.model_config["task"]["dataset"] == "tests.toy_world:toy-strips"
    shapes = configure(resolve_defaults(Options()))
    assert shapes.env == "glimpse_env:Glimpse/Shapes-v0"
    assert shapes.rl_module_spec.model_config["task"]["dataset"] == "shapes"


def test_the_module_points_as_the_policy_does():
    task = {"split": "val", "observe": "index"}
    envs = GlimpseVectorEnv(5, **task)
    spec = RLModuleSpec(
        module_class=GlimpseModule,
        observation_space=envs.single_observation_space,
        action_space=envs.single_action_space,
        model_config={"task": {"dataset": "shapes", **task}, "attention_dim": 8},
    )
    module = spec.build()
    observation, _ = envs.reset(seed=0)
    observation, *_ = envs.step(np.arange(5))
    batch = {Columns.OBS: {name: torch.as_tensor(array) for name, array in observation.items()}}
    logits = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    policy = module.policy
    with torch.no_grad():
        expected = policy.get_distribution(policy.obs_to_tensor(observation)[0]).distribution.logits
        torch.testing.assert_close(logits.log_softmax(-1), expected)
        values = policy.predict_values(policy.obs_to_tensor(observation)[0]).squeeze(-1)
        torch.testing.assert_close(module.compute_values(batch), values)
        trained = module.forward_train(batch)
        torch.testing.assert_close(trained[Columns.ACTION_DIST_INPUTS], logits)
        read = trained[Columns.EMBEDDINGS]
        torch.testing.assert_close(module.compute_values({}, embeddings=read), values)  # and not read again


def first_images(worker, begun=0):
    config = configure(resolve_defaults(Options(runners=2, **{**TINY, "num_envs": 16})), begun)
    runner = config.env_runner_cls(config=config, worker_index=worker)
    episodes = runner.sample(num_timesteps=16)
    return [int(episode.get_observations(0)["image"][0]) for episode in episodes[:16]]


def test_no_two_runners_draw_the_same_images():
    first, second = first_images(1), first_images(2)
    assert first_images(1) == first
    assert len({*first} & {*second}) <= 1  # of 20,000; RLlib's own seeds would make it 15
    assert first_images(1, begun=1000) != first  # what is gone on with does not begin again


@pytest.mark.parametrize("shaped", [False, True])
def test_runners_step_the_native_vector_and_count_no_resets(shaped):
    options = resolve_defaults(Options(runners=0, shaped=shaped, **TINY))
    runner = SingleAgentEnvRunner(config=configure(options))
    assert isinstance(runner.env.unwrapped, GlimpseVectorEnv)
    episodes = runner.sample(num_episodes=12)
    assert len(episodes) == 12
    dataset = runner.env.unwrapped.dataset
    for episode in episodes:
        info = episode.get_infos(-1)
        assert episode.is_terminated
        observations = episode.get_observations()
        times = observations["time"][:, 0].tolist()
        assert times == sorted(set(times))  # every step said a word, from none on
        assert times[0] == 0
        row = int(observations["image"][0, 0])
        assert info["image_id"] == dataset.image_id(row)
        words = len(info["caption"].split())
        assert len(episode) in (words, words + 1)  # with <end>, or cut off at T
        if not shaped:
            assert all(reward == 0 for reward in episode.get_rewards()[:-1])


def moments(trainer):
    """What the optimiser has gathered of each gradient."""
    (state,) = trainer.algorithm.learner_group.get_state()["learner"]["optimizer"].values()
    return [moment["exp_avg"] for moment in state["state"]["state"].values()]


def rate(trainer):
    return trainer.algorithm.config.lr[0][1]


@pytest.mark.parametrize("algo", ["ppo", "impala"])
def test_a_run_is_scored_kept_played_and_goes_on(ray_here, algo, tmp_path):
    options = resolve_defaults(
        Options(algo=algo, runners=1, steps=200, validate_every=64, run_dir=tmp_path / "run", **TINY)
    )
    directory, trainer = RunDirectory(options.run_dir, options, False), Trainer(options)
    before = {name: tensor.clone() for name, tensor in trainer.attention().state_dict().items()}
    trainer.run(directory)
    assert trainer.steps >= 200
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.attention().state_dict().items())
    attention_before, moments_before = trainer.attention().state_dict(), moments(trainer)
    trainer.close()
    directory.close()
    scores = [float(row["val/bleu4"]) for row in rows(options.run_dir)]
    assert len(scores) >= 3
    assert max(scores) == pytest.approx(trainer.best, rel=1e-5)
    evaluation = evaluate.Options(agent=str(options.run_dir), split="val", limit=8)
    assert evaluate.evaluate(evaluation).scores.bleu[3] == pytest.approx(
        trainer.best, abs=1e-3
    )  # the file has half precision
    assert find_agent(str(options.run_dir), "shapes").attention == "hard"

    assert not [*options.run_dir.rglob("*.pkl")]
    more = resolve_defaults(Options(**{**vars(options), "runners": 2, "resume": True}))
    directory = RunDirectory(more.run_dir, more, True)
    again = Trainer(more, directory)
    assert (again.steps, again.best) == (trainer.steps, trainer.best)
    for name, tensor in again.attention().state_dict().items():
        torch.testing.assert_close(tensor, attention_before[name])
    moved = moments(again)
    assert all(np.array_equal(*pair) for pair in zip(moments_before, moved, strict=True))
    assert any(moment.any() for moment in moved)
    assert 0 < rate(again) < options.learning_rate  # where it had come to
    again.options.steps = again.steps + 100
    again.run(directory)
    assert again.steps >= trainer.steps + 100
    assert [int(row["step"]) for row in rows(options.run_dir)] == sorted(
        {int(row["step"]) for row in rows(options.run_dir)}
    )
    again.close()
    directory.close()


def test_a_runner_that_is_killed_is_replaced(ray_here, tmp_path):
    options = resolve_defaults(Options(runners=2, steps=10**9, run_dir=tmp_path / "run", **TINY))
    trainer = Trainer(options)
    group = trainer.algorithm.env_runner_group

    def pids():
        return set(group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False, timeout_seconds=30))

    trainer.algorithm.train()
    (victim, survivor), steps = sorted(pids()), 0
    os.kill(victim, signal.SIGKILL)
    for _ in range(60):
        steps = trainer.algorithm.train()["env_runners"].get("num_env_steps_sampled_lifetime", steps)
        if len(pids()) == 2:
            break
    alive = pids()
    assert len(alive) == 2
    assert victim not in alive
    assert survivor in alive
    more = trainer.algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"]
    assert more > steps
    trainer.close()


def test_learners_share_a_batch(ray_here, tmp_path):
    options = resolve_defaults(Options(runners=1, learners=2, steps=64, run_dir=tmp_path / "run", **TINY))
    directory, trainer = RunDirectory(options.run_dir, options, False), Trainer(options)
    before = {name: tensor.clone() for name, tensor in trainer.attention().state_dict().items()}
    trainer.run(directory)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.attention().state_dict().items())
    assert (options.run_dir / "attention.safetensors").is_file()
    trainer.close()
    directory.close()


def test_more_than_this_machine_has_is_refused_at_once(tmp_path):
    words = ["--runner-gpus", "500", "--runners", "2", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "train.rllib", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: 1000 GPUs are asked for, and this machine has" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_running_cluster_is_joined_with_these_packages_and_folders(tmp_path):
    """From another folder: workers know only what they are sent."""
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 << 20})
    try:
        words = "--runners 1 --steps 64 --num-envs 4 --n-steps 8 --limit 4 --attention-dim 8 --threads 1 --run-dir run"
        command = [sys.executable, "-m", "train.rllib", *words.split(), "--captioner", "mine.safetensors"]
        shutil.copy(captioner_path("shapes"), tmp_path / "mine.safetensors")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLIMPSE_CACHE": str(tmp_path / "cache")}
        more = {"cwd": tmp_path, "capture_output": True, "text": True, "env": environment}
        done = subprocess.run([*command, "--address", running.address], **more)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "run" / "attention.safetensors").is_file()
        assert len([*(tmp_path / "cache").glob("shapes-train-*.npy")]) == 2  # the table and its sums, of the runner
        alone = subprocess.run(
            [*command[:-4], "--run-dir", "other"], **{**more, "env": {**environment, "RAY_ADDRESS": "no"}}
        )
        assert alone.returncode == 0, alone.stderr  # without --address none is joined
    finally:
        running.shutdown()


@pytest.mark.parametrize("runners", [0, 1])
def test_the_command(runners, tmp_path):
    words = f"--runners {runners} --steps 64 --num-envs 4 --n-steps 8 --limit 4 --attention-dim 8 --threads 1 --run-dir"
    command = [sys.executable, "-m", "train.rllib", *words.split(), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "best val BLEU-4" in done.stdout
    assert (tmp_path / "run" / "attention.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "Glimpse/Moon-v0"}, "unknown environment 'Glimpse/Moon-v0'"),
        ({"algo": "sac"}, "unknown algorithm 'sac'"),
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
        ({"gpus": -0.5}, "gpus must be at least 0, got -0.5"),
        ({"gpus": 0.5}, "pass --learners 1"),
        ({"learners": 3, "batch_size": 2}, "3 learners cannot share a minibatch of fewer steps"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"gae_lambda": 7.0}, "gae_lambda must be between 0 and 1, got 7"),
        ({"checkpoint_minutes": -5.0}, "checkpoint_minutes must be at least 0"),
        ({"algo": "impala", "n_epochs": 9}, "impala has no n_epochs; it takes learning_rate"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        resolve_defaults(Options(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"captioner": "nope"}, "nope"), ({"reward": "zzz"}, "unknown reward 'zzz'")],
)
def test_what_the_environment_refuses_is_said_before_ray_starts(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr("train.rllib.trainer.cluster", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(Options(run_dir=tmp_path / "run", **changes))
    assert not [*tmp_path.iterdir()]


def test_the_task_is_the_same_for_environment_and_module(tmp_path):
    task = env_config(Options(data_root=tmp_path, shaped=False, runner_gpus=0.5))
    assert task["data_root"] == str(tmp_path)
    assert (task["observe"], task["device"], task["shaped"]) == ("index", "cuda", False)
    assert configure(resolve_defaults(Options(learners=1, gpus=0.25, runner_gpus=0.5))).num_gpus_per_learner == 0.25
