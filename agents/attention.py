"""How well each location fits the decoder's state: the scores that soft and hard attention share.

Knows annotations and the hidden state. It does not know what is done with its scores, nor any environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glimpse_env.core.safetensors_files import (
    FileFormatError,
    load_weights,
    read_config,
    read_notes,
    read_tensors,
    without_memory,
    write_tensors,
)

FORMAT = "glimpse-attention-1"


@dataclass(frozen=True)
class AttentionConfig:
    """Sizes of an AdditiveAttention: D of the annotations, H of the decoder's state, A of the space they meet in."""

    feature_dim: int
    hidden_dim: int
    attention_dim: int = 256


class AdditiveAttention(nn.Module):
    """f_att of SAT eq. 4: e_i = v·tanh(W_a a_i + W_h h).

    Args:
        config: the three widths.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.key = nn.Linear(config.feature_dim, config.attention_dim)
        self.query = nn.Linear(config.hidden_dim, config.attention_dim)
        self.score = nn.Linear(config.attention_dim, 1, bias=False)

    def keys(self, annotations: Tensor) -> Tensor:
        """W_a a, (…, L, A), of annotations (…, L, D): the part of the scores that no word changes."""
        keys: Tensor = self.key(annotations)
        return keys

    def scores(self, keys: Tensor, hidden: Tensor) -> Tensor:
        """Scores e (…, L) of SAT eq. 4, of keys (…, L, A) for hidden states (…, H); leading shapes broadcast."""
        met = keys + self.query(hidden).unsqueeze(-2)  # (…, L, A)
        if met.dtype not in (torch.float32, torch.float64):  # 2σ(2x) − 1 rounds too much there
            scores: Tensor = self.score(met.tanh_())  # (…, L, 1)
        else:  # on the CPU torch's tanh takes six times as long as its sigmoid
            scores = self.score(met.mul_(2).sigmoid_()).mul(2) - self.score.weight.sum()
        return scores.squeeze(-1)

    def forward(self, annotations: Tensor, hidden: Tensor) -> Tensor:
        """Unnormalised scores e (B, L) of annotations (B, L, D) for hidden states (B, H)."""
        return self.scores(self.keys(annotations), hidden)


def save_attention(attention: AdditiveAttention, path: str | Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write attention weights in half precision, atomically.

    Args:
        attention: what to save.
        path: the file; its folder is made when missing.
        notes: JSON-able remarks kept in the file, such as the captioner it was trained with.
    """
    metadata = {"format": FORMAT, "attention": asdict(attention.config), "notes": dict(notes or {})}
    write_tensors(Path(path), attention.state_dict(), metadata)


def attention_notes(path: str | Path) -> dict[str, Any]:
    """The remarks kept in an attention file.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is cut off, damaged or of another kind.
    """
    return read_notes(Path(path), read_tensors(Path(path), FORMAT)[1])


def load_attention(path: str | Path) -> AdditiveAttention:
    """Read attention weights, frozen.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is cut off, damaged or of another kind.
    """
    tensors, metadata = read_tensors(Path(path), FORMAT)
    try:
        config = read_config(AttentionConfig, metadata["attention"])
        with without_memory():  # for what a file only claims
            attention = AdditiveAttention(config)
    except (KeyError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{str(path)!r}: {error}; fetch or train the agent again") from error
    load_weights(Path(path), attention, tensors)
    return attention.eval().requires_grad_(False)
