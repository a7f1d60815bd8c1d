"""A captioning task: the assets of a split, a reward, and how glimpses are observed and words are chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from glimpse_env.datasets import find_world
from glimpse_env.envs.shared_assets import SharedAssets
from glimpse_env.metrics.rewards import RewardFn
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import WordSampling


@dataclass(frozen=True)
class CaptionTask:
    """What an environment's arguments stand for. It is read-only, so one task may serve many environments.

    Attributes:
        assets: dataset, captioner, features, references and decoder.
        reward: scores captions.
        attention: ``hard`` or ``soft``.
        observe: ``features``, ``index`` or ``glimpsed``.
        shaped: whether rewards are potential-based.
        sampling: how words are chosen.
        max_caption_length: T.
    """

    assets: SharedAssets
    reward: RewardFn
    attention: str
    observe: str
    shaped: bool
    sampling: WordSampling
    max_caption_length: int

    @property
    def device(self) -> torch.device:
        """Where the decoder runs."""
        return self.assets.decoder.device

    def dynamics(self, num_episodes: int) -> CaptionDynamics:
        """B episodes of this task."""
        return CaptionDynamics(
            self.assets.captioner,
            self.assets.features,
            self.assets.references,
            self.reward,
            metrics=find_world(self.assets.dataset.name).metrics,
            num_episodes=num_episodes,
            attention=self.attention,
            sampling=self.sampling,
            shaped=self.shaped,
            max_caption_length=self.max_caption_length,
            decoder=self.assets.decoder.with_own_buffers(),
            initial_states=self.assets.initial_states,
        )
