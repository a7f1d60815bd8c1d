"""Where to look, learned by Stable-Baselines3: PPO, A2C, DQN, MaskablePPO and RecurrentPPO, with policies that point.

A run that is resumed goes on as if it had never stopped: episodes under way and a DQN's replay buffer are kept, too.
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
from agents.loading import find_start, load_fitting_attention
from agents.policy_agent import POLICIES, PolicyAgent, save_policy
from agents.sb3 import GlimpseVecEnv
from glimpse_env.datasets import make_dataset
from glimpse_env.features.build import open_features
from glimpse_env.models.captioner import load_captioner
from glimpse_env.registration import IDS
from glimpse_env.rollout.beam_search import Captioned
from glimpse_env.rollout.decode import Policy, decode
from train.common.options import prepare
from train.common.run_directory import RunDirectory
from train.evaluate.scoring import score
from train.sb3 import checkpoint as midway
from train.sb3.options import Options, recipe, settle

RECENT = 1000  # episodes charts/reward is the mean of

ALGORITHMS: dict[str, Any] = {
    "ppo": PPO,
    "a2c": A2C,
    "dqn": DQN,
    "maskable-ppo": MaskablePPO,
    "recurrent-ppo": RecurrentPPO,
}
LOSSES = {  # names of Stable-Baselines3; ours, and their sign
    "train/policy_gradient_loss": ("losses/policy", 1),
    "train/policy_loss": ("losses/policy", 1),
    "train/entropy_loss": ("losses/entropy", -1),
    "train/value_loss": ("losses/value", 1),
    "train/loss": ("losses/total", 1),
}


class Trainer:
    """One run, resumable.

    Args:
        options: settled options.

    Attributes:
        plain: whether the policy is an attention over whole images and nothing else.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        dataset = IDS[options.env]
        file, own = (None, None) if options.start is None else find_start(options.start, dataset)
        self.speaker = options.captioner or own or dataset
        self.captioner = load_captioner(self.speaker).to(options.device)
        start = None if file is None else load_fitting_attention(file, self.captioner)
        self.envs = GlimpseVecEnv(
            options.env,
            options.num_envs or 1,
            captioner=self.captioner,
            observe=options.observe,
            reward=options.reward,
            shaped=options.shaped,
            data_root=options.data_root,
            device=options.device,
        )
        self.val_set = make_dataset(dataset, "val", options.data_root)
        self.val_features = open_features(self.val_set, self.captioner.encoder)
        self.plain = options.algo != "recurrent-ppo" and options.observe != "glimpsed"
        self.extractor = {
            "attention_dim": options.attention_dim if start is None else start.config.attention_dim,
            "places": options.observe == "glimpsed",
        }
        table = {"table": self.envs.env.features} if options.observe == "index" else {}
        arguments = {name: getattr(options, name, value) for name, value in recipe(options.algo, dataset).items()}
        memory = {name: arguments.pop(name) for name in ("lstm_hidden_size",) if name in arguments}
        del arguments["steps"], arguments["num_envs"]
        arguments["learning_rate"] = lambda left: (options.learning_rate or 0.0) * left
        self.model: Any = ALGORITHMS[options.algo](
            POLICIES[options.algo],
            self.envs,
            seed=options.seed % 2**32,
            device=options.device,
            policy_kwargs={"features_extractor_kwargs": {**self.extractor, **table}, **memory},
            **arguments,
        )
        self.model.set_logger(Logger(None, []))
        if start is not None:
            self.model.policy.attention.load_state_dict(start.state_dict())
            if options.algo == "dqn":
                self.model.q_net_target.load_state_dict(self.model.q_net.state_dict())
        self.validated, self.best, self.best_steps, self.seconds = -1, -1.0, 0, 0.0
        self._earned = np.zeros(self.envs.num_envs)
        self._rewards: deque[float] = deque(maxlen=RECENT)
        self._saved = self._resumed = time.monotonic()

    _PROGRESS = ("validated", "best", "best_steps", "seconds")

    def state(self) -> dict[str, Any]:
        """What a resumed run has of this one."""
        return {
            "model": midway.snapshot(self.model, self.envs),
            "progress": {name: getattr(self, name) for name in self._PROGRESS},
            "earned": torch.from_numpy(self._earned),
            "rewards": list(self._rewards),
            "recorded": {name: float(self.model.logger.name_to_value.get(name, math.nan)) for name in LOSSES},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a ``state()``."""
        midway.restore(self.model, self.envs, state["model"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self._earned[...] = state["earned"].numpy()
        self._rewards.extend(state["rewards"])
        for name, value in state["recorded"].items():
            if not math.isnan(value):
                self.model.logger.record(name, value)

    def run(self, directory: RunDirectory) -> None:
        """Train to the last step, keeping the weights that are best on val."""
        total, done = self.options.steps or 1, self.model.num_timesteps
        self._saved = self._resumed = time.monotonic()
        with tqdm(total=total, initial=done, desc="steps", unit="step") as bar:
            try:
                self.model.learn(
                    total - done, _Hooks(self, directory, bar), log_interval=None, reset_num_timesteps=False
                )
            except ValueError:  # a distribution refuses logits that are not numbers before there is a pause
                self._check_finite(directory)
                raise

    def step(self, rewards: npt.NDArray[np.float32], ended: npt.NDArray[np.bool_]) -> None:
        """Count what episodes have earned."""
        self._earned += rewards
        self._rewards.extend(self._earned[ended].tolist())
        self._earned[ended] = 0

    def pause(self, directory: RunDirectory, last: bool = False) -> None:
        """Between an update and the next rollout: score and save when it is time."""
        self._check_finite(directory)
        steps, every, now = self.model.num_timesteps, self.options.validate_every, time.monotonic()
        due = steps // every > self.validated // every or (last and steps > self.validated)
        if not due and now - self._saved <= 60 * self.options.checkpoint_minutes:
            return
        self.seconds += now - self._resumed
        if due:
            self._validate(directory)
        directory.save(self.state())
        self._saved = self._resumed = time.monotonic()

    def _check_finite(self, directory: RunDirectory) -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.policy.parameters()):
            raise FloatingPointError(
                f"weights are not finite any more after step {self.model.num_timesteps}; the last good checkpoint is "
                f"{directory.path / 'checkpoint.pt'}; lower --learning-rate in another run"
            )

    def caption(self) -> list[Captioned]:
        """Captions of val, or of its first ``limit`` images, looking where it seems best."""
        options, policy = self.options, self.model.policy
        rows = range(len(self.val_set))[: options.limit]
        agent: Policy = PolicyAgent(policy, self.val_features, options.observe or "index")
        if self.plain:
            agent = HardAttentionAgent(policy.attention, self.val_features, options.device)
        table = None if self.plain or options.observe != "index" else policy.features_extractor.table
        try:
            if table is not None:
                policy.features_extractor.table = self.val_features
            longest = self.envs.env.task.max_caption_length
            return decode(
                self.captioner, self.val_features, agent, rows, max_caption_length=longest, device=options.device
            )
        finally:
            if table is not None:
                policy.features_extractor.table = table

    def _validate(self, directory: RunDirectory) -> None:
        steps = self.validated = self.model.num_timesteps
        made = self.caption()
        scores = score(made, [self.val_set.references(caption.row) for caption in made])
        recorded = self.model.logger.name_to_value
        metrics = {
            **({"charts/reward": float(np.mean(self._rewards))} if self._rewards else {}),
            **{name: sign * float(recorded[theirs]) for theirs, (name, sign) in LOSSES.items() if theirs in recorded},
            "charts/steps": steps,
            "charts/seconds": self.seconds,
            **{f"val/bleu{order}": value for order, value in enumerate(scores.bleu, 1)},
            "val/length_ratio": scores.length_ratio,
            "val/bad_endings": scores.bad_endings,
        }
        directory.log(steps, metrics)
        shown = " ".join(f"{100 * value:.1f}" for value in scores.bleu)
        reward = metrics.get("charts/reward")
        tqdm.write(
            f"{steps:,} steps, {self.seconds:.0f} s: val BLEU-1..4 {shown}, length {scores.length_ratio:.2f}"
            + ("" if reward is None else f", reward {reward:.3f}")
        )
        if scores.bleu[3] > self.best:
            self.best, self.best_steps = scores.bleu[3], steps
            self._export(directory.path, metrics)

    def _export(self, folder: Path, metrics: dict[str, float]) -> None:
        """Write the weights: an attention where that is all there is, else the policy's state."""
        options = self.options
        notes = {
            "trained_with": {
                "command": "train.sb3",
                "algo": options.algo,
                "seed": options.seed,
                "steps": self.model.num_timesteps,
            },
            "env": options.env,
            "captioner": self.speaker,
            "val": {name: round(value, 4) for name, value in metrics.items() if name.startswith("val/")},
        }
        if self.plain:
            save_attention(self.model.policy.attention, folder / "attention.safetensors", notes)
            return
        made_of = {"algo": options.algo, "observe": options.observe, **self.extractor}
        save_policy(self.model.policy, folder / "policy.safetensors", made_of, notes)


class _Hooks(BaseCallback):
    """Tells a trainer what its algorithm is doing."""

    def __init__(self, trainer: Trainer, directory: RunDirectory, bar: tqdm) -> None:
        super().__init__()
        self.trainer, self.directory, self.bar = trainer, directory, bar

    def _on_rollout_start(self) -> None:
        self.trainer.pause(self.directory)

    def _on_step(self) -> bool:
        rewards = self.locals["rewards"]
        self.trainer.step(rewards, self.locals["dones"])
        self.bar.update(len(rewards))
        return True

    def _on_training_end(self) -> None:
        self.trainer.pause(self.directory, last=True)


def main(options: Options) -> None:
    """Train, from the start or from where a run stopped."""
    options = settle(options)
    prepare(options)
    trainer = Trainer(options)  # what does not fit is refused before anything is written
    directory = RunDirectory(options.run_dir or Path("runs"), options, options.resume)
    if options.resume:
        trainer.load(directory.restore())
    trainer.run(directory)
    directory.close()
    print(f"best val BLEU-4 {trainer.best:.4f} after {trainer.best_steps:,} steps; weights in {directory.path}")
