"""The caption decoder of SAT §3.1.2: one LSTM step from a context vector to word logits.

The context is an argument, so that every attention agent can drive the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a CaptionDecoder.

    Attributes:
        vocab_size: number of words, special ones included.
        feature_dim: D, length of an annotation vector.
        embed_dim: E, length of a word embedding.
        hidden_dim: H, length of the LSTM's state.
        context_dim: P, length of the linear map of a context that the gates and the output read.
        dropout: share of the output layer's inputs dropped in training (SAT §5.2).
        init: ``mean``: h₀ and c₀ from the mean annotation through an MLP (SAT §3.1.2); ``zeros``: the decoder has no
            other information on the image than its glimpses.
    """

    vocab_size: int
    feature_dim: int
    embed_dim: int = 300
    hidden_dim: int = 512
    context_dim: int = 512
    dropout: float = 0.5
    init: Literal["mean", "zeros"] = "mean"


class DecoderState(NamedTuple):
    """State of the LSTM: hidden (…, H) and cell (…, H), float."""

    hidden: Tensor
    cell: Tensor


def initial_state(means: Tensor, initial: nn.Module | None, hidden_dim: int) -> DecoderState:
    """h₀ and c₀, (B, H), from mean annotations (B, D) through the MLP ``initial`` (SAT §3.1.2); zeros without one."""
    if initial is None:
        zeros = means.new_zeros(len(means), hidden_dim)
        return DecoderState(zeros, zeros.clone())
    hidden, cell = torch.tanh(initial(means)).chunk(2, dim=-1)
    return DecoderState(hidden, cell)


def mean_annotation(annotations: Tensor, masks: Tensor | None = None, keepdim: bool = False) -> Tensor:
    """Mean (B, D), or (B, 1, D) with ``keepdim``, of annotations (B, L, D) over the locations of ``masks`` (B, L)."""
    if masks is None:
        return annotations.mean(1, keepdim=keepdim)
    total = (annotations * masks.unsqueeze(-1)).sum(1, keepdim=keepdim)
    return total / masks.sum(1).reshape(-1, *[1] * (total.ndim - 1))


class CaptionDecoder(nn.Module):
    """The LSTM of SAT §3.1.2 with a gated context and a deep output layer.

    ``step`` is made of ``project``, ``recur`` and ``logits``. They are public so that a training loop can compute once
    per image, or once per caption, what does not change from word to word.

    Recurrent weights are initialized orthogonal, the forget gate's bias 1, embeddings uniform in ±0.1, linear layers as
    in PyTorch.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        hidden, context = config.hidden_dim, config.context_dim
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.project_context = nn.Linear(config.feature_dim, context)
        self.input_gates = nn.Linear(config.embed_dim, 4 * hidden)
        self.context_gates = nn.Linear(context, 4 * hidden, bias=False)
        self.recurrent_gates = nn.Linear(hidden, 4 * hidden, bias=False)
        self.selector = nn.Linear(hidden, 1)  # f_β of SAT §4.2.1
        self.output_hidden = nn.Linear(hidden, config.embed_dim)  # L_h
        self.output_context = nn.Linear(context, config.embed_dim)  # L_z
        self.output_word = nn.Linear(config.embed_dim, config.vocab_size)  # L_o
        self.dropout = nn.Dropout(config.dropout)
        self.initial: nn.Module | None = None
        if config.init == "mean":
            layers = nn.Linear(config.feature_dim, hidden), nn.Tanh(), nn.Linear(hidden, 2 * hidden)
            self.initial = nn.Sequential(*layers)
        with torch.no_grad():
            for gate in self.recurrent_gates.weight.chunk(4):
                nn.init.orthogonal_(gate)
            self.input_gates.bias.chunk(4)[1].fill_(1.0)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output_word.weight, -0.1, 0.1)
        nn.init.zeros_(self.output_word.bias)

    def init_state(self, annotations: Tensor, masks: Tensor | None = None) -> DecoderState:
        """The state before the first word: h₀ and c₀, (B, H).

        Args:
            annotations: (B, L, D), float.
            masks: which locations the images have, (B, L), bool; None where all have all.
        """
        return initial_state(mean_annotation(annotations, masks), self.initial, self.config.hidden_dim)

    def project(self, context: Tensor) -> Tensor:
        """Map contexts, or annotations, (…, D) to (…, P). The map is affine: it commutes with soft attention's mean."""
        projected: Tensor = self.project_context(context)
        return projected

    def recur(self, embedded_gates: Tensor, projected: Tensor, state: DecoderState) -> DecoderState:
        """One LSTM step over [embedding; gated context] (SAT eq. 1–3, with β of §4.2.1).

        Args:
            embedded_gates: (…, 4H), ``input_gates`` of the last word's embedding.
            projected: (…, P), the projected context.
            state: the state before the step.
        """
        beta = torch.sigmoid(self.selector(state.hidden))  # (…, 1)
        gates = embedded_gates + self.context_gates(beta * projected) + self.recurrent_gates(state.hidden)  # (…, 4H)
        admit, forget, candidate, emit = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * state.cell + torch.sigmoid(admit) * torch.tanh(candidate)
        return DecoderState(torch.sigmoid(emit) * torch.tanh(cell), cell)

    def logits(self, embedded: Tensor, hidden: Tensor, projected: Tensor) -> Tensor:
        """Word logits (…, vocab_size): L_o·tanh(E y + L_h h + L_z z) (SAT eq. 7; the tanh is its released code's).

        Args:
            embedded: (…, E), the last word's embedding.
            hidden: (…, H), the state after the step.
            projected: (…, P), the projected context.
        """
        mixed = torch.tanh(embedded + self.output_hidden(self.dropout(hidden)) + self.output_context(projected))
        words: Tensor = self.output_word(self.dropout(mixed))
        return words

    def step(self, context: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Logits of the next word (B, vocab_size), and the state after the step.

        Args:
            context: z, (B, D), float.
            token: the last word's id, (B,), int64.
            state: the state before the step.
        """
        return self.step_projected(self.project(context), token, state)

    def step_projected(self, projected: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """``step`` with a context, (B, P), that ``project`` has mapped."""
        embedded = self.embedding(token)  # (B, E)
        state = self.recur(self.input_gates(embedded), projected, state)
        return self.logits(embedded, state.hidden, projected), state
