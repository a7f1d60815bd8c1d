"""Baselines of REINFORCE: predicted returns, which are subtracted from the returns.

A prediction does not depend on the glimpse of its step, so the expected gradient stays that of the expected reward
(Williams 1992).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glimpse_env.models.decoder import DecoderConfig
from train.reinforce.trajectories import Trajectories


class Baseline(ABC):
    """Predicts the return of every step.

    Attributes:
        greedy_last: whether every image needs a greedy caption beside its sampled ones.
        network: a network that predicts and is trained with the policy, if any.
        average: exponential moving average of the mean rewards of past batches; None before the first.
    """

    greedy_last: ClassVar[bool] = False

    def __init__(self, decoder: DecoderConfig, reward_to_go: bool) -> None:
        self.reward_to_go = reward_to_go
        self.average: float | None = None
        self.network: nn.Module | None = None

    @abstractmethod
    def __call__(self, trajectories: Trajectories, returns: Tensor, means: Tensor) -> Tensor:
        """Predicted returns, (T, I, K), of returns (T, I, K) on images with mean annotations ``means`` (I, D)."""

    def observe(self, reward: float) -> None:
        """Add the mean reward of a batch to the moving average."""
        self.average = reward if self.average is None else 0.9 * self.average + 0.1 * reward  # SAT §4.1

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"average": self.average, "network": {} if self.network is None else self.network.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to a ``state_dict()``."""
        self.average = state_dict["average"]
        if self.network is not None:
            self.network.load_state_dict(state_dict["network"])


class _LeaveOneOut(Baseline):
    """Mean return of the image's other captions (Kool et al. 2019)."""

    def __call__(self, trajectories: Trajectories, returns: Tensor, means: Tensor) -> Tensor:
        return (returns.sum(2, keepdim=True) - returns) / (returns.shape[2] - 1)


class _SelfCritical(Baseline):
    """Return of the image's greedy caption, the last one (Rennie et al. 2017)."""

    greedy_last = True

    def __call__(self, trajectories: Trajectories, returns: Tensor, means: Tensor) -> Tensor:
        return returns[..., -1:].expand_as(returns)


class _MovingAverage(Baseline):
    """Moving average of past rewards (SAT §4.1), for rewards to go without what the caption has earned so far."""

    def __call__(self, trajectories: Trajectories, returns: Tensor, means: Tensor) -> Tensor:
        average = self.average or 0.0
        if self.reward_to_go:
            return average - (trajectories.rewards.cumsum(0) - trajectories.rewards)
        return torch.full_like(returns, average)


class _Value(Baseline):
    """A value learned from the hidden state and the mean annotation of the image (Mnih and Gregor 2014)."""

    def __init__(self, decoder: DecoderConfig, reward_to_go: bool) -> None:
        super().__init__(decoder, reward_to_go)
        size = decoder.hidden_dim + decoder.feature_dim
        self.network: nn.Module = nn.Sequential(nn.Linear(size, 128), nn.Tanh(), nn.Linear(128, 1))

    def __call__(self, trajectories: Trajectories, returns: Tensor, means: Tensor) -> Tensor:
        hidden = trajectories.hidden
        means = means.unsqueeze(1).expand(*hidden.shape[:3], -1)  # (T, I, K, D)
        values: Tensor = self.network(torch.cat([hidden, means], -1)).squeeze(-1)
        return values


BASELINES: dict[str, type[Baseline]] = {
    "leave-one-out": _LeaveOneOut,
    "self-critical": _SelfCritical,
    "moving-average": _MovingAverage,
    "value": _Value,
}
