"""Hard attention learned by Stable-Baselines3: PPO, A2C, DQN, MaskablePPO and RecurrentPPO, with pointer policies.

A resumed run ends in the same weights as one that was not stopped: the checkpoint holds the unfinished episodes and
DQN's replay buffer.
"""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from tqdm import tqdm

from agents.attention import save_attention
from agents.attention_agents import HardAttentionAgent
from agents.policy_agent import POLICIES, PolicyAgent, save_policy
from agents.sb3 import GlimpseVecEnv
from glimpse_env.rollout.beam_search import Captioned
from train.common.options import prepare
from train.common.run_directory import RunDirectory
from train.evaluate.policy_trainer import PolicyTrainer
from train.sb3.checkpoint import AlgorithmState
from train.sb3.options import Options, find_hyperparameters, resolve_defaults

REWARD_WINDOW = 1000  # episodes that charts/reward is the mean of

ALGORITHMS: dict[str, Any] = {
    "ppo": PPO,
    "a2c": A2C,
    "dqn": DQN,
    "maskable-ppo": MaskablePPO,
    "recurrent-ppo": RecurrentPPO,
}
LOSSES = {  # name in Stable-Baselines3: (name in metrics.csv, sign)
    "train/policy_gradient_loss": ("losses/policy", 1),
    "train/policy_loss": ("losses/policy", 1),
    "train/entropy_loss": ("losses/entropy", -1),
    "train/value_loss": ("losses/value", 1),
    "train/loss": ("losses/total", 1),
}


class Trainer(PolicyTrainer):
    """A run of an algorithm of Stable-Baselines3 with options whose defaults are resolved, resumable after any update.

    Attributes:
        attention_only: whether the policy is an attention over all features and nothing else.
    """

    PROGRESS = ("validated",)
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options, options.start)
        task = {name: getattr(options, name) for name in ("observe", "reward", "shaped", "data_root", "device")}
        self.envs = GlimpseVecEnv(options.env, options.num_envs or 1, captioner=self.captioner, **task)
        start = self.start_attention
        self.attention_only = options.algo != "recurrent-ppo" and options.observe != "glimpsed"
        self.extractor = {
            "attention_dim": options.attention_dim if start is None else start.config.attention_dim,
            "places": options.observe == "glimpsed",
        }
        self.model = self._make_model()
        if start is not None:
            self.model.policy.attention.load_state_dict(start.state_dict())
            if options.algo == "dqn":
                self.model.q_net_target.load_state_dict(self.model.q_net.state_dict())
        self.stateful = {"model": AlgorithmState(self.model, self.envs)}
        self.validated = -1  # steps before the last scores on val
        self._returns = np.zeros(self.envs.num_envs)  # of the unfinished episodes
        self._rewards: deque[float] = deque(maxlen=REWARD_WINDOW)
        self._resumed = time.monotonic()

    def _make_model(self) -> Any:
        options = self.options
        hyperparameters = find_hyperparameters(options.algo, self.dataset)
        arguments = {name: getattr(options, name, value) for name, value in hyperparameters.items()}
        table = {"table": self.envs.env.features} if options.observe == "index" else {}
        memory = {name: arguments.pop(name) for name in ("lstm_hidden_size",) if name in arguments}
        del arguments["steps"], arguments["num_envs"]
        arguments["learning_rate"] = lambda progress_remaining: (options.learning_rate or 0.0) * progress_remaining
        model = ALGORITHMS[options.algo](
            POLICIES[options.algo],
            self.envs,
            seed=options.seed % 2**32,
            device=options.device,
            policy_kwargs={"features_extractor_kwargs": {**self.extractor, **table}, **memory},
            **arguments,
        )
        model.set_logger(Logger(None, []))
        return model

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, but for the global generators, which ``RunDirectory`` saves."""
        return {
            **super().state(),
            "returns": torch.from_numpy(self._returns),
            "rewards": list(self._rewards),
            "losses": {name: float(self.model.logger.name_to_value.get(name, math.nan)) for name in LOSSES},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a ``state()``."""
        super().load(state)
        self._returns[...] = state["returns"].numpy()
        self._rewards.extend(state["rewards"])
        for name, value in state["losses"].items():
            if not math.isnan(value):
                self.model.logger.record(name, value)

    def run(self, directory: RunDirectory) -> None:
        """Train to the last step, keeping the weights that are best on val."""
        total, steps = self.options.steps or 1, self.model.num_timesteps
        self._resumed = time.monotonic()
        with tqdm(total=total, initial=steps, desc="steps", unit="step") as bar:
            callback = _Callback(self, directory, bar)
            try:
                self.model.learn(total - steps, callback, log_interval=None, reset_num_timesteps=False)
            except ValueError:  # a distribution refuses logits that are not finite, before the update is complete
                self._check_finite(directory)
                raise

    def record_step(self, rewards: npt.NDArray[np.float32], ended: npt.NDArray[np.bool_]) -> None:
        """Add the rewards (B,) of a step to the returns of the episodes; ``ended``, (B,), ends some of them."""
        self._returns += rewards
        self._rewards.extend(self._returns[ended].tolist())
        self._returns[ended] = 0

    def finish_update(self, directory: RunDirectory, last: bool = False) -> None:
        """Validate and save where it is due, between an update and the next rollout.

        Raises:
            FloatingPointError: the weights are not finite.
        """
        self._check_finite(directory)
        steps, every = self.model.num_timesteps, self.options.validate_every
        validate = steps // every > self.validated // every or (last and steps > self.validated)
        if not validate and not self.checkpoint_due():
            return
        self.seconds += time.monotonic() - self._resumed
        if validate:
            self._validate(directory)
        self.save(directory)
        self._resumed = time.monotonic()

    def _check_finite(self, directory: RunDirectory) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.policy.parameters()):
            raise FloatingPointError(
                f"weights are not finite any more after step {self.model.num_timesteps}; the last good checkpoint is "
                f"{directory.path / 'checkpoint.pt'}; lower --learning-rate in another run"
            )

    def caption(self) -> list[Captioned]:
        """Captions of val, or of its first ``limit`` images, with the policy's best locations."""
        options, policy = self.options, self.model.policy
        if self.attention_only:
            return self.caption_val(HardAttentionAgent(policy.attention, self.val_features, options.device))
        agent = PolicyAgent(policy, self.val_features, options.observe or "index")
        if options.observe != "index":
            return self.caption_val(agent)
        train_features = policy.features_extractor.table
        try:
            policy.features_extractor.table = self.val_features
            return self.caption_val(agent)
        finally:
            policy.features_extractor.table = train_features

    def _validate(self, directory: RunDirectory) -> None:
        """Score the policy on val, and write its weights if they are the best so far."""
        options = self.options
        steps = self.validated = self.model.num_timesteps
        recorded = self.model.logger.name_to_value
        losses = {name: sign * float(recorded[key]) for key, (name, sign) in LOSSES.items() if key in recorded}
        reward = {"charts/reward": float(np.mean(self._rewards))} if self._rewards else {}
        trained_with = {"command": "train.sb3", "algo": options.algo, "seed": options.seed, "steps": steps}
        metrics = {**reward, **losses, "charts/steps": steps}
        notes = self.score_val(directory, self.caption(), steps, metrics, trained_with)
        if notes is None:
            return
        if self.attention_only:
            save_attention(self.model.policy.attention, directory.path / "attention.safetensors", notes)
            return
        config = {"algo": options.algo, "observe": options.observe, **self.extractor}
        save_policy(self.model.policy, directory.path / "policy.safetensors", config, notes)


class _Callback(BaseCallback):
    """Calls the trainer at each step and after each update."""

    def __init__(self, trainer: Trainer, directory: RunDirectory, bar: tqdm) -> None:
        super().__init__()
        self.trainer, self.directory, self.bar = trainer, directory, bar

    def _on_rollout_start(self) -> None:
        self.trainer.finish_update(self.directory)

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        self.trainer.record_step(rewards, self.locals["dones"])
        self.bar.update(len(rewards))
        return True

    def _on_training_end(self) -> None:
        self.trainer.finish_update(self.directory, last=True)


def main(options: Options) -> None:
    """Train, from the start or from the checkpoint of the run."""
    options = resolve_defaults(options)
    prepare(options)
    trainer = Trainer(options)  # first: options that do not fit leave no files
    directory = RunDirectory(options.run_dir or Path("runs"), options, options.resume)
    trainer.complete(directory, options.resume)
