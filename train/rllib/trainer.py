"""Where to look, learned by Ray RLlib: environments in processes of their own, on one machine or on a cluster.

Knows RLlib's new API stack. A run that is resumed goes on from its last checkpoint, with episodes begun anew: unlike
those of train.sb3 it is not the same to the bit, for runners finish in any order.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

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
from glimpse_env.datasets import longest_caption, make_dataset
from glimpse_env.envs.task import make_task
from glimpse_env.features.build import open_features
from glimpse_env.models.captioner import load_captioner
from glimpse_env.registration import IDS
from glimpse_env.rollout.decode import decode
from train.common.options import prepare
from train.common.ray_cluster import cluster
from train.common.run_directory import RunDirectory
from train.evaluate.scoring import score
from train.rllib.env_runner import GlimpseRunner
from train.rllib.options import Options, settle, task_of

POINTER = "policy.mlp_extractor.pointer."  # of the module's weights, what points


def configure(options: Options, begun: int = 0) -> AlgorithmConfig:
    """The options in RLlib's words.

    Args:
        options: settled options.
        begun: steps before this start of the run: one that goes on draws other images than it began with, and learns
            at the rate that it had come to.
    """
    task = task_of(options)
    sampled, learners = options.n_steps * options.num_envs * max(1, options.runners), max(1, options.learners)
    left = max(1, options.steps - begun)
    line = [[0, (options.learning_rate or 0.0) * left / max(1, options.steps)], [left, 0.0]]
    shared = {"gamma": 1.0, "entropy_coeff": options.ent_coef, "vf_loss_coeff": 0.5, "grad_clip_by": "global_norm"}
    if options.algo == "ppo":
        config: Any = PPOConfig().training(
            lr=line,
            lambda_=options.gae_lambda,
            clip_param=0.2,
            vf_clip_param=float("inf"),
            use_kl_loss=False,
            grad_clip=0.5,
            train_batch_size_per_learner=sampled // learners,
            minibatch_size=min(options.batch_size or sampled, sampled) // learners,
            num_epochs=options.n_epochs,
            shuffle_batch_per_epoch=True,  # else minibatches are whole episodes, one after the other
            **shared,
        )
    else:
        config = IMPALAConfig().training(
            lr=line,
            grad_clip=0.5,
            train_batch_size_per_learner=options.n_steps * options.num_envs,
            **shared,
        )
    seed = int(np.random.SeedSequence([options.seed % 2**32, begun]).generate_state(1)[0] // 2)  # and runners add to it
    # Of its task a module needs the table alone, and a process without a GPU may hold one.
    module = {"task": {"dataset": IDS[options.env], **task, "device": "cpu"}, "attention_dim": options.attention_dim}
    configured: AlgorithmConfig = (
        config.environment(f"glimpse_env:{options.env}", env_config=task)
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
    return configured


class Trainer:
    """One run, resumable.

    Args:
        options: settled options; Ray has been started.
        directory: of the run to go on with; none begins one.

    Raises:
        ValueError: the run's checkpoint is damaged.
    """

    def __init__(self, options: Options, directory: RunDirectory | None = None) -> None:
        self.options = options
        dataset = IDS[options.env]
        self.speaker = options.captioner or dataset
        self.captioner = load_captioner(self.speaker).to(options.device)
        self.val_set = make_dataset(dataset, "val", options.data_root)
        self.val_features = open_features(self.val_set, self.captioner.encoder)
        self.steps, self.validated, self.best, self.best_steps, self.seconds = 0, -1, -1.0, 0, 0.0
        self._reward: float | None = None
        state = {"progress": {}} if directory is None else directory.restore()
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self.begun = self.steps
        self.algorithm: Algorithm = configure(options, self.begun).build_algo()
        if "learner" in state:
            learner = tree.map_structure(
                lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf, state["learner"]
            )
            self.algorithm.learner_group.set_state({COMPONENT_LEARNER: learner})
            self.algorithm.env_runner_group.sync_weights(
                from_worker_or_learner_group=self.algorithm.learner_group, inference_only=True
            )

    _PROGRESS = ("steps", "validated", "best", "best_steps", "seconds")

    def save(self, directory: RunDirectory) -> None:
        """Write a checkpoint of our own: RLlib's holds pickles, which run code of whoever wrote them."""
        told = self.algorithm.learner_group.get_state()[COMPONENT_LEARNER]
        learner = tree.map_structure(
            lambda leaf: torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf,
            {name: told[name] for name in (COMPONENT_RL_MODULE, COMPONENT_OPTIMIZER, WEIGHTS_SEQ_NO)},
        )
        directory.save({"progress": {name: getattr(self, name) for name in self._PROGRESS}, "learner": learner})

    def run(self, directory: RunDirectory) -> None:
        """Train to the last step, keeping the weights that are best on val."""
        options, every = self.options, self.options.validate_every
        saved = resumed = time.monotonic()
        if self.steps == 0:
            self.validate(directory)
        with tqdm(total=options.steps, initial=self.steps, desc="steps", unit="step") as bar:
            while self.steps < options.steps:
                told = self.algorithm.train()["env_runners"]
                said = told.get("num_env_steps_sampled_lifetime", self.steps - self.begun)  # since this start
                before, self.steps = self.steps, self.begun + int(said)
                self._reward = told.get("episode_return_mean", self._reward)
                bar.update(self.steps - before)
                now, last = time.monotonic(), self.steps >= options.steps
                self.seconds, resumed = self.seconds + now - resumed, now
                due = self.steps // every > self.validated // every or last
                if due:
                    self.validate(directory)
                if due or now - saved > 60 * options.checkpoint_minutes:
                    self.save(directory)
                    saved = time.monotonic()
                resumed = time.monotonic()

    def attention(self) -> AdditiveAttention:
        """What points, with the learner's weights.

        Raises:
            FloatingPointError: they are not finite.
        """
        weights = self.algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID]
        state = {
            name.removeprefix(POINTER): torch.as_tensor(value)
            for name, value in weights.items()
            if name.startswith(POINTER)
        }
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise FloatingPointError(
                f"weights are not finite any more after step {self.steps}; lower --learning-rate in another run"
            )
        sizes = self.captioner.decoder.config
        attention = AdditiveAttention(AttentionConfig(sizes.feature_dim, sizes.hidden_dim, self.options.attention_dim))
        attention.load_state_dict(state)
        return attention.eval().requires_grad_(False)

    def validate(self, directory: RunDirectory) -> None:
        """Score the attention on val, and keep it if it is the best so far."""
        options, attention = self.options, self.attention()
        self.validated = self.steps
        agent = HardAttentionAgent(attention, self.val_features, options.device)
        rows = range(len(self.val_set))[: options.limit]
        longest = longest_caption(IDS[options.env])
        made = decode(self.captioner, self.val_features, agent, rows, max_caption_length=longest, device=options.device)
        scores = score(made, [self.val_set.references(caption.row) for caption in made])
        metrics = {
            **({} if self._reward is None else {"charts/reward": float(self._reward)}),
            "charts/steps": self.steps,
            "charts/seconds": self.seconds,
            **{f"val/bleu{order}": value for order, value in enumerate(scores.bleu, 1)},
            "val/length_ratio": scores.length_ratio,
            "val/bad_endings": scores.bad_endings,
        }
        directory.log(self.steps, metrics)
        tqdm.write(f"{self.steps:,} steps, {self.seconds:.0f} s: val BLEU-4 {scores.bleu[3]:.4f}")
        if scores.bleu[3] > self.best:
            self.best, self.best_steps = scores.bleu[3], self.steps
            notes = {
                "trained_with": {
                    "command": "train.rllib",
                    "algo": options.algo,
                    "seed": options.seed,
                    "steps": self.steps,
                },
                "env": options.env,
                "captioner": self.speaker,
                "val": {name: round(value, 4) for name, value in metrics.items() if name.startswith("val/")},
            }
            save_attention(attention, directory.path / "attention.safetensors", notes)

    def close(self) -> None:
        """End the runners."""
        self.algorithm.stop()


def main(options: Options) -> None:
    """Train, from the start or from where a run stopped."""
    options = settle(options)
    prepare(options)
    make_task(IDS[options.env], **task_of(options) | {"device": "cpu"})  # what cannot be is said before Ray starts
    if not options.threads:  # a core for each runner: threads that wait for each other are slower than one
        beside = options.runners if options.address is None else 0
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - beside))
    gpus = options.runners * options.runner_gpus + options.learners * options.gpus
    with cluster(options.address, options.runners + options.learners, gpus):
        directory = RunDirectory(options.run_dir or Path("runs"), options, options.resume)
        trainer = Trainer(options, directory if options.resume else None)
        trainer.run(directory)
        trainer.close()
        directory.close()
    print(f"best val BLEU-4 {trainer.best:.4f} after {trainer.best_steps:,} steps; weights in {directory.path}")
