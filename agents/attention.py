"""Additive attention: the scores of locations that soft and hard attention share, and the weights files of agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glimpse_env.core import safetensors_files
from glimpse_env.core.safetensors_files import FileFormatError
from glimpse_env.models.captioner import Captioner

FORMAT = "glimpse-attention-1"
POLICY_FORMAT = "glimpse-policy-1"  # of agents.policy_agent, which takes seconds to import


@dataclass(frozen=True)
class AttentionConfig:
    """Sizes of an AdditiveAttention: D of the annotations, H of the hidden state, A of the keys and queries."""

    feature_dim: int
    hidden_dim: int
    attention_dim: int = 256


class AdditiveAttention(nn.Module):
    """f_att of SAT eq. 4: e_i = v·tanh(W_a a_i + W_h h)."""

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.key = nn.Linear(config.feature_dim, config.attention_dim)
        self.query = nn.Linear(config.hidden_dim, config.attention_dim)
        self.score = nn.Linear(config.attention_dim, 1, bias=False)

    def keys(self, annotations: Tensor) -> Tensor:
        """W_a a, (…, L, A), of annotations (…, L, D): the term of the scores that is the same at every step."""
        return self.key(annotations)

    def scores(self, keys: Tensor, hidden: Tensor) -> Tensor:
        """Scores e (…, L) of SAT eq. 4, of keys (…, L, A) for hidden states (…, H); leading shapes broadcast.

        Every learned agent takes its scores, which a softmax turns into α, from here.
        """
        summed = keys + self.query(hidden).unsqueeze(-2)  # (…, L, A)
        if summed.dtype not in (torch.float32, torch.float64):  # 2σ(2x) − 1 rounds too much there
            return self.score(summed.tanh_()).squeeze(-1)
        # On the CPU torch's tanh takes six times as long as its sigmoid.
        return (self.score(summed.mul_(2).sigmoid_()).mul(2) - self.score.weight.sum()).squeeze(-1)

    def forward(self, annotations: Tensor, hidden: Tensor) -> Tensor:
        """Unnormalised scores e (B, L) of annotations (B, L, D) for hidden states (B, H)."""
        return self.scores(self.keys(annotations), hidden)


def mask_scores(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores (…, L) whose softmax is 0 at locations outside ``mask`` (…, L), bool; None masks nothing.

    The lowest finite number stands for −∞, so that entropies and their gradients stay finite.
    """
    return scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


class AgentFile(NamedTuple):
    """A weights file of an agent, read once."""

    path: Path
    tensors: dict[str, Tensor]  # its weights, float32, by name
    metadata: dict[str, Any]  # the JSON beside them

    @property
    def notes(self) -> dict[str, Any]:
        """Remarks stored in the file, such as the captioner the agent was trained with.

        Raises:
            FileFormatError: they are no JSON object.
        """
        notes = self.metadata.get("notes", {})
        if not isinstance(notes, dict):
            raise FileFormatError(
                f"{str(self.path)!r}: its notes are {notes!r}, expected a JSON object; fetch it again"
            )
        return notes

    @property
    def is_policy(self) -> bool:
        """Whether it holds a policy of Stable-Baselines3 (``agents.policy_agent``) and not attention alone."""
        return self.metadata["format"] == POLICY_FORMAT

    def attention(self) -> AdditiveAttention:
        """The attention, frozen.

        Raises:
            FileFormatError: the weights do not fit the sizes beside them.
        """
        try:
            config = safetensors_files.read_config(AttentionConfig, self.metadata["attention"])
            with safetensors_files.init_empty_weights():  # for what a file only claims
                attention = AdditiveAttention(config)
        except (KeyError, ValueError, RuntimeError) as error:
            raise FileFormatError(f"{str(self.path)!r}: {error}; fetch or train the agent again") from error
        safetensors_files.load_weights(self.path, attention, self.tensors)
        return attention.eval().requires_grad_(False)

    def attention_for(self, captioner: Captioner) -> AdditiveAttention:
        """The attention, frozen, for an environment's captioner.

        Raises:
            FileFormatError: as ``attention``.
            ValueError: it was trained with a captioner of other sizes.
        """
        attention, decoder = self.attention(), captioner.decoder.config
        expected = (decoder.feature_dim, decoder.hidden_dim)
        sizes = (attention.config.feature_dim, attention.config.hidden_dim)
        if expected != sizes:
            raise ValueError(
                f"attention {str(self.path)!r} reads annotations and states of lengths {sizes}, but the environment's "
                f"captioner has {expected}; it was trained with another captioner"
            )
        return attention


def read_agent_file(path: str | Path, *formats: str) -> AgentFile:
    """Read a weights file of an agent, of one of ``formats``; by default, of an attention.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is cut off, damaged or of another format.
    """
    return AgentFile(Path(path), *safetensors_files.read_tensors(Path(path), *(formats or (FORMAT,))))


def save_attention(attention: AdditiveAttention, path: str | Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write attention weights in half precision, atomically.

    Args:
        attention: what to save.
        path: the file; its folder is made when missing.
        notes: JSON-able remarks kept in the file, such as the captioner it was trained with.
    """
    metadata = {"format": FORMAT, "attention": asdict(attention.config), "notes": dict(notes or {})}
    safetensors_files.write_tensors(Path(path), attention.state_dict(), metadata)


def load_attention(path: str | Path) -> AdditiveAttention:
    """Read attention weights, frozen; raises as ``read_agent_file`` does."""
    return read_agent_file(path).attention()
