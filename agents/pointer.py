"""Pointer policies for Stable-Baselines3: the logit of a location is its additive attention score (SAT eq. 4).

Vinyals et al. 2015, *Pointer Networks*.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn

from agents.attention import AdditiveAttention, AttentionConfig, mask_scores
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.decoder import mean_annotation

VALUE_DIM = 64


class GlimpseExtractor(BaseFeaturesExtractor):
    """Extracts the state of the episode and a key for every location.

    Args:
        observation_space: of the environment, in any of the three modes of ``observe``.
        table: the environment's ``features``, for ``observe="index"``; annotations are looked up in it by row.
        attention_dim: A, length of a key.
        places: whether to add a learned position embedding of each location to its key; without it, locations with
            equal features, such as all that have not been glimpsed, have equal keys.

    Attributes:
        state_dim: S = H + L + 1: hidden state, glimpses so far, time.
        shape: (L, A) of the keys.
        has_masks: whether observations say which locations an image has; the mask follows the keys then.

    Raises:
        ValueError: the observations carry rows, and there is no table, or one of another length.
    """

    annotations: Tensor

    def __init__(
        self,
        observation_space: spaces.Dict,
        table: FeatureTable | None = None,
        attention_dim: int = 64,
        places: bool = False,
    ) -> None:
        if "image" in observation_space.spaces:
            rows = int(observation_space["image"].high[0]) + 1  # type: ignore[attr-defined]
            if table is None or len(table) != rows:
                raise ValueError(
                    f"observations carry rows of a table of {rows} images, but the extractor was given "
                    f"{'none' if table is None else f'one of {len(table)}'}; pass "
                    "features_extractor_kwargs={'table': env.features}"
                )
            locations, features = table.shape[1:]
        else:
            locations, features = observation_space["features"].shape  # type: ignore[misc]
        (hidden,) = observation_space["hidden"].shape  # type: ignore[misc]
        state = hidden + locations + 1
        self.has_masks = "action_mask" in observation_space.spaces
        super().__init__(observation_space, state + locations * (attention_dim + self.has_masks))
        self.hidden_dim, self.state_dim, self.shape = hidden, state, (locations, attention_dim)
        self.table: Any = table
        self.key = nn.Linear(features, attention_dim)
        self.place = nn.Parameter(torch.zeros(locations, attention_dim)) if places else None

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """State, keys and mask, if there is one, concatenated, (B, S + L · A) or (B, S + L · (A + 1)), float32."""
        if "image" in observations:
            annotations = self.table.rows(observations["image"].long().flatten(), self.key.weight.device)
        else:
            annotations = observations["features"]
        keys = self.key(annotations.float())  # (B, L, A)
        if self.place is not None:
            keys = keys + self.place
        columns = [observations["hidden"], observations["glimpses"], observations["time"], keys.flatten(1)]
        if self.has_masks:
            columns.append(observations["action_mask"].float())
        return torch.cat(columns, 1)


class PointerHeads(nn.Module):
    """Logits over locations and the latent of the value, in place of Stable-Baselines3's ``MlpExtractor``.

    ``state_dim``, S, numbers come before the keys; the first ``query_dim`` of them make the query.
    """

    def __init__(self, extractor: GlimpseExtractor, state_dim: int, query_dim: int) -> None:
        super().__init__()
        locations, width = self.shape = extractor.shape
        self.state_dim, self.query_dim = state_dim, query_dim
        self.latent_dim_pi, self.latent_dim_vf = locations, VALUE_DIM
        self.pointer = AdditiveAttention(AttentionConfig(extractor.key.in_features, query_dim, width))
        self.pointer.key = extractor.key  # the same weights, so that the pointer is an attention like any other
        self.value = nn.Sequential(
            nn.Linear(state_dim + width, VALUE_DIM), nn.Tanh(), nn.Linear(VALUE_DIM, VALUE_DIM), nn.Tanh()
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``forward_actor`` and ``forward_critic``."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        """Logits of locations, (B, L)."""
        state, keys, mask = self.split(features)
        return mask_scores(self.pointer.scores(keys, state[:, : self.query_dim]), mask)

    def forward_critic(self, features: Tensor) -> Tensor:
        """Latent of the value, (B, VALUE_DIM), from the state and the mean key, without a gradient to the keys."""
        state, keys, mask = self.split(features)
        return self.value(torch.cat([state, mean_annotation(keys, mask).detach()], 1))

    def split(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """State (B, S), keys (B, L, A) and mask (B, L), None where images have all locations."""
        return features[:, : self.state_dim], *split_keys(features[:, self.state_dim :], self.shape)


def split_keys(features: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Keys (B, L, A) and mask (B, L), bool, None without one, from what follows the state in extracted features."""
    keys, mask = features.tensor_split((shape[0] * shape[1],), 1)
    return keys.unflatten(1, shape), mask.bool() if mask.shape[1] else None


class _Pointing:
    """What the actor-critic policies share: pointer heads instead of an MLP, and no layer after their logits."""

    mlp_extractor: Any
    action_net: Any

    def __init__(
        self, observation_space: spaces.Dict, action_space: spaces.Space[Any], *args: Any, **kwargs: Any
    ) -> None:
        _check_hard(action_space)
        kwargs = {"features_extractor_class": GlimpseExtractor, "ortho_init": False, **kwargs}
        super().__init__(observation_space, action_space, *args, **kwargs)  # type: ignore[call-arg]

    @property
    def attention(self) -> AdditiveAttention:
        """The pointer's attention; a ``HardAttentionAgent`` can use it if its query is the hidden state."""
        return self.mlp_extractor.pointer

    def _build_mlp_extractor(self) -> None:
        extractor: GlimpseExtractor = self.features_extractor  # type: ignore[attr-defined]
        self.mlp_extractor = PointerHeads(extractor, extractor.state_dim, extractor.hidden_dim)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = nn.Identity()
        policy: Any = self
        self.optimizer = policy.optimizer_class(policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs)


class GlimpsePolicy(_Pointing, ActorCriticPolicy):
    """The pointer for PPO and A2C."""


class MaskableGlimpsePolicy(_Pointing, MaskableActorCriticPolicy):
    """The pointer for MaskablePPO."""


class RecurrentGlimpsePolicy(_Pointing, RecurrentActorCriticPolicy):
    """The pointer for RecurrentPPO: an LSTM over the state and the mean key makes the query.

    With ``observe="glimpsed"``, ``places=True`` lets it tell locations apart that have not been glimpsed.

    Raises:
        ValueError: the critic would have no LSTM.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("enable_critic_lstm", True) and not kwargs.get("shared_lstm", False):
            raise ValueError("the critic reads an LSTM; leave enable_critic_lstm=True, or pass shared_lstm=True")
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        extractor: Any = self.features_extractor
        self.features_dim = extractor.state_dim + extractor.shape[1]  # of the LSTMs' input
        self.mlp_extractor = PointerHeads(extractor, self.lstm_output_dim, self.lstm_output_dim)

    def _process_sequence(  # type: ignore[override]
        self, features: Tensor, lstm_states: Any, episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, Any]:
        """The LSTM's output and the keys, concatenated."""
        size = self.features_extractor.state_dim
        state, rest = features[:, :size], features[:, size:]
        mean = mean_annotation(*split_keys(rest, cast("tuple[int, int]", self.features_extractor.shape)))
        inputs = torch.cat([state, mean.detach() if lstm is self.lstm_critic else mean], 1)
        output, lstm_states = RecurrentActorCriticPolicy._process_sequence(inputs, lstm_states, episode_starts, lstm)
        return torch.cat([output, rest], 1), lstm_states


class _PointerQNetwork(QNetwork):
    """Q-values: the value of the state, plus each location's advantage, its pointer score."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        extractor: Any = self.features_extractor
        self.q_net = nn.Sequential(_PointerQ(PointerHeads(extractor, extractor.state_dim, extractor.hidden_dim)))


class _PointerQ(nn.Module):
    def __init__(self, heads: PointerHeads) -> None:
        super().__init__()
        self.heads, self.value_net = heads, nn.Linear(heads.latent_dim_vf, 1)

    def forward(self, features: Tensor) -> Tensor:
        scores, latent = self.heads(features)
        return self.value_net(latent) + scores - scores.mean(1, keepdim=True)


class GlimpseQPolicy(DQNPolicy):
    """The pointer for DQN, as a duelling network (Wang et al. 2016), where all images have all locations."""

    def __init__(self, observation_space: spaces.Dict, action_space: Any, *args: Any, **kwargs: Any) -> None:
        _check_hard(action_space)
        if "action_mask" in observation_space.spaces:
            raise ValueError("DQN draws random locations, which some images here lack; train with ppo or maskable-ppo")
        kwargs = {"features_extractor_class": GlimpseExtractor, **kwargs}
        super().__init__(observation_space, action_space, *args, **kwargs)

    @property
    def attention(self) -> AdditiveAttention:
        """The pointer's attention; a ``HardAttentionAgent`` can use it, too."""
        network: Any = self.q_net.q_net[0]
        return network.heads.pointer

    def make_q_net(self) -> QNetwork:
        """A pointer network with its own features extractor."""
        return _PointerQNetwork(**self._update_features_extractor(self.net_args)).to(self.device)


def _check_hard(action_space: spaces.Space[Any]) -> None:
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(
            f"these policies point at one location, but the environment's actions are {action_space}; make it with "
            "attention='hard'"
        )
