"""Hard attention learned by Ray RLlib, with environments in processes of their own, on one machine or on a cluster.

A resumed run goes on from its last checkpoint with new episodes. Unlike one of ``train.sb3`` it does not end in the
same weights as a run that was not stopped, for runners finish in any order.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from torch import Tensor
from tqdm import tqdm

from agents.attention import AdditiveAttention, AttentionConfig, save_attention
from agents.attention_agents import HardAttentionAgent
from agents.rllib import GlimpseModule
from glimpse_env.datasets import world_of
from glimpse_env.envs.single import GlimpseEnv
from train.common.options import prepare
from train.common.ray_cluster import cluster
from train.common.run_directory import RunDirectory
from train.evaluate.policy_trainer import PolicyTrainer
from train.rllib.env_runner import GlimpseRunner
from train.rllib.options import Options, env_config, resolve_defaults

POINTER = "policy.mlp_extractor.pointer."  # prefix of the attention among the weights of the module


def configure(options: Options, steps_before: int = 0) -> AlgorithmConfig:
    """The options as a configuration of RLlib.

    A run that is resumed after ``steps_before`` steps draws other images, and learns at the rate that it had reached.
    """
    task = env_config(options)
    # Runners add their numbers to the seed.
    seed = int(np.random.SeedSequence([options.seed % 2**32, steps_before]).generate_state(1)[0] // 2)
    # A module reads no more than the table of its task, and its process may have no GPU.
    env_id = world_of(options.env).env_id
    dataset = gym.spec(env_id).kwargs["dataset"]  # of another package with the module that registers it
    module_task = {"dataset": dataset, **task, "device": "cpu"}
    module = {"task": module_task, "attention_dim": options.attention_dim}
    return (
        _training(options, steps_before)
        .environment(f"{dataset.rpartition(':')[0] or 'glimpse_env'}:{env_id}", env_config=task)
        .env_runners(
            env_runner_cls=GlimpseRunner,
            num_env_runners=options.runners,
            num_envs_per_env_runner=options.num_envs,
            gym_env_vectorize_mode="vector_entry_point",  # the native vector environment, NEXT_STEP
            rollout_fragment_length=options.n_steps,
            num_gpus_per_env_runner=options.runner_gpus,
        )
        .learners(num_learners=options.learners, num_gpus_per_learner=options.gpus)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=GlimpseModule, model_config=module))
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1)
        .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
        .debugging(seed=seed, log_level="ERROR")
    )


def _training(options: Options, steps_before: int) -> Any:
    """A configuration with the hyperparameters of the algorithm."""
    remaining = max(1, options.steps - steps_before)
    rate = (options.learning_rate or 0.0) * remaining / max(1, options.steps)
    shared = {
        "lr": [[0, rate], [remaining, 0.0]],
        "gamma": 1.0,
        "entropy_coeff": options.ent_coef,
        "vf_loss_coeff": 0.5,
        "grad_clip": 0.5,
        "grad_clip_by": "global_norm",
    }
    fragment = options.n_steps * options.num_envs
    if options.algo == "impala":
        return IMPALAConfig().training(train_batch_size_per_learner=fragment, **shared)
    batch, learners = fragment * max(1, options.runners), max(1, options.learners)
    return PPOConfig().training(
        lambda_=options.gae_lambda,
        clip_param=0.2,
        vf_clip_param=float("inf"),
        use_kl_loss=False,
        train_batch_size_per_learner=batch // learners,
        minibatch_size=min(options.batch_size or batch, batch) // learners,
        num_epochs=options.n_epochs,
        shuffle_batch_per_epoch=True,  # else a minibatch holds whole episodes in their order
        **shared,
    )


class Trainer(PolicyTrainer):
    """A run of an algorithm of RLlib, new or that of ``directory`` from its last checkpoint; Ray has been started.

    Raises:
        ValueError: the run's checkpoint is damaged.
    """

    PROGRESS = ("steps", "validated")
    options: Options

    def __init__(self, options: Options, directory: RunDirectory | None = None) -> None:
        super().__init__(options)
        self.steps, self.validated = 0, -1
        self._reward: float | None = None
        state = None if directory is None else directory.restore()
        if state is not None:
            self.load(state)
        self._steps_before = self.steps
        self.algorithm: Algorithm = configure(options, self._steps_before).build_algo()
        if state is not None:
            learner = tree.map_structure(
                lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf, state["learner"]
            )
            group = self.algorithm.learner_group
            group.set_state({COMPONENT_LEARNER: learner})
            self.algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=group, inference_only=True)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs. RLlib's own checkpoints are pickles, which can run code when they are read."""
        state = self.algorithm.learner_group.get_state()[COMPONENT_LEARNER]
        learner = tree.map_structure(
            lambda leaf: torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf,
            {name: state[name] for name in (COMPONENT_RL_MODULE, COMPONENT_OPTIMIZER, WEIGHTS_SEQ_NO)},
        )
        return {**super().state(), "learner": learner}

    def run(self, directory: RunDirectory) -> None:
        """Train to the last step, keeping the weights that are best on val."""
        options, every = self.options, self.options.validate_every
        if self.steps == 0:
            self._validate(directory)
        with tqdm(total=options.steps, initial=self.steps, desc="steps", unit="step") as bar:
            while self.steps < options.steps:
                with self.timed():
                    results = self.algorithm.train()["env_runners"]
                previous = self.steps
                sampled = results.get("num_env_steps_sampled_lifetime", previous - self._steps_before)
                self.steps = self._steps_before + int(sampled)
                self._reward = results.get("episode_return_mean", self._reward)
                bar.update(self.steps - previous)
                validate = self.steps // every > self.validated // every or self.steps >= options.steps
                if validate:
                    self._validate(directory)
                if validate or self.checkpoint_due():
                    self.save(directory)

    def attention(self) -> AdditiveAttention:
        """The attention with the learner's weights, frozen.

        Raises:
            FloatingPointError: they are not finite.
        """
        weights = self.algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID]
        names = [name for name in weights if name.startswith(POINTER)]
        state = {name.removeprefix(POINTER): torch.as_tensor(weights[name]) for name in names}
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise FloatingPointError(
                f"weights are not finite any more after step {self.steps}; lower --learning-rate in another run"
            )
        decoder = self.captioner.decoder.config
        config = AttentionConfig(decoder.feature_dim, decoder.hidden_dim, self.options.attention_dim)
        attention = AdditiveAttention(config)
        attention.load_state_dict(state)
        return attention.eval().requires_grad_(False)

    def _validate(self, directory: RunDirectory) -> None:
        """Score the attention on val, and write it if it is the best so far."""
        options, attention = self.options, self.attention()
        self.validated = self.steps
        captions = self.caption_val(HardAttentionAgent(attention, self.val_features, options.device))
        reward = {} if self._reward is None else {"charts/reward": float(self._reward)}
        metrics = {**reward, "charts/steps": self.steps}
        trained_with = {"command": "train.rllib", "algo": options.algo, "seed": options.seed, "steps": self.steps}
        notes = self.score_val(directory, captions, self.steps, metrics, trained_with)
        if notes is not None:
            save_attention(attention, directory.path / "attention.safetensors", notes)

    def close(self) -> None:
        """Stop the runners."""
        self.algorithm.stop()


def main(options: Options) -> None:
    """Train, from the start or from the checkpoint of the run."""
    options = resolve_defaults(options)
    prepare(options)
    # Refuses bad options before Ray starts.
    GlimpseEnv(world_of(options.env).name, **env_config(options) | {"device": "cpu"})
    if not options.threads:  # a core for each runner: threads that wait for each other are slower than one
        runners = options.runners if options.address is None else 0
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - runners))
    gpus = options.runners * options.runner_gpus + options.learners * options.gpus
    with cluster(options.address, options.runners + options.learners, gpus):
        directory = RunDirectory(options.run_dir or Path("runs"), options, options.resume)
        trainer = Trainer(options, directory if options.resume else None)
        trainer.complete(directory)
        trainer.close()
