"""The policy of ``agents.pointer`` as a module of Ray RLlib's new API stack, for PPO and IMPALA."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from agents.pointer import GlimpsePolicy
from glimpse_env.envs.single import GlimpseEnv


class GlimpseModule(TorchRLModule, ValueFunctionAPI):
    """``GlimpsePolicy`` behind RLlib's API: the logit of a location is its additive attention score (SAT eq. 4).

    Observations carry rows (``observe="index"``), and the module looks their features up in a table of its own process:
    environment, runner and learner share it as a memory-mapped file, and 25 KiB a step stay out of Ray's object store.

    Its ``model_config`` holds ``task``, arguments of ``GlimpseEnv``, and ``attention_dim``, A.
    """

    framework = "torch"

    def setup(self) -> None:
        """Build the policy; RLlib calls it once in every process."""
        config = self.model_config
        table = GlimpseEnv(**config["task"]).features
        self.policy = GlimpsePolicy(
            self.observation_space,
            self.action_space,
            lambda progress_remaining: 0.0,  # RLlib replaces its optimiser
            features_extractor_kwargs={"table": table, "attention_dim": config["attention_dim"]},
        )

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Logits of locations, (B, L)."""
        return {Columns.ACTION_DIST_INPUTS: self.policy.mlp_extractor.forward_actor(self._extract(batch))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """As ``_forward``, and the extracted features, which ``compute_values`` can take again."""
        features = self._extract(batch)
        logits = self.policy.mlp_extractor.forward_actor(features)
        return {Columns.EMBEDDINGS: features, Columns.ACTION_DIST_INPUTS: logits}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Values of states, (B,)."""
        latent = self.policy.mlp_extractor.forward_critic(self._extract(batch) if embeddings is None else embeddings)
        return self.policy.value_net(latent).squeeze(-1)

    def _extract(self, batch: dict[str, Any]) -> Tensor:
        """State and keys, concatenated, (B, S + L · A)."""
        return self.policy.features_extractor(batch[Columns.OBS])
