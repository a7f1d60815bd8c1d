"""The caption decoder made for speaking: weights packed once, words folded into tables, nothing kept for gradients.

Says what ``CaptionDecoder.step`` says, in fewer and larger products. It does not know who looks or when a caption ends.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from glimpse_env.decoder import CaptionDecoder, DecoderState, initial_state


class FrozenDecoder:
    """A ``CaptionDecoder`` in evaluation mode. Weights are packed now: what is trained later is not heard.

    Args:
        decoder: what to freeze.
        silent: ids of words that are never said: their logits are −∞.
        device: where it runs.
        dtype: of the products: float32, or bfloat16, which is several times faster where the processor multiplies it
            natively and rounds enough to change a word now and then.
    """

    @torch.no_grad()
    def __init__(
        self,
        decoder: CaptionDecoder,
        silent: Sequence[int] = (),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.dtype = decoder.config, dtype
        self.device = torch.device(device)
        decoder = copy.deepcopy(decoder).to(self.device)  # what was handed in stays as it is, where it is
        self._initial = decoder.initial
        embedding = decoder.embedding.weight
        # The gates in the order of the packed products: admit, forget and emit share a sigmoid.
        admit, forget, candidate, emit = torch.arange(4 * self.config.hidden_dim, device=self.device).chunk(4)
        order = torch.cat([admit, forget, emit, candidate])
        self._word_gates = decoder.input_gates(embedding)[:, order].contiguous()  # (V, 4H)
        gates = torch.cat([decoder.context_gates.weight, decoder.recurrent_gates.weight], 1)[order]
        self._gates = gates.t().contiguous().to(dtype)  # (P + H, 4H)
        self._word_output = embedding + decoder.output_hidden.bias + decoder.output_context.bias  # (V, E)
        output = torch.cat([decoder.output_context.weight, decoder.output_hidden.weight], 1)
        self._output = output.t().contiguous().to(dtype)  # (P + H, E)
        self._words = decoder.output_word.weight.t().contiguous().to(dtype)  # (E, V)
        self._bias = decoder.output_word.bias.clone()
        self._bias[list(silent)] = -torch.inf
        self._projection = decoder.project_context.weight.t().contiguous().to(dtype)  # (D, P)
        self._projection_bias = decoder.project_context.bias.clone()
        self._selector = decoder.selector.weight[0].clone()
        self._selector_bias = decoder.selector.bias.clone()

    @torch.inference_mode()
    def init_state(self, annotations: Tensor) -> DecoderState:
        """h₀ and c₀, (B, H), from annotations (B, L, D)."""
        return initial_state(annotations, self._initial, self.config.hidden_dim)

    @torch.inference_mode()
    def project(self, context: Tensor) -> Tensor:
        """Contexts (…, D) as (…, P), in the type of the products."""
        projected = self._product(self._projection_bias, context.flatten(0, -2), self._projection)
        return projected.to(self.dtype).reshape(*context.shape[:-1], -1)

    def _product(self, added: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        """Added + values · weights, float32."""
        if self.dtype == torch.float32:
            return torch.addmm(added, values, weights)
        return (values.to(self.dtype) @ weights).float().add_(added)

    @torch.inference_mode()
    def say(self, projected: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One word: logits (B, V), and the state after it.

        Args:
            projected: the projected context, (B, P), in the type of the products.
            token: the last word's id, (B,), int64.
            state: the state before the step.
        """
        hidden, cell = state
        beta = torch.addmv(self._selector_bias, hidden, self._selector).sigmoid_()  # (B,)
        read = torch.cat([projected * beta.unsqueeze(1), hidden], 1)  # (B, P + H)
        gates = self._product(self._word_gates[token], read, self._gates)
        width = self.config.hidden_dim
        admit, forget, emit = gates[:, : 3 * width].sigmoid_().chunk(3, 1)
        cell = (forget * cell).addcmul_(admit, gates[:, 3 * width :].tanh_())
        hidden = emit * cell.tanh()
        said = torch.cat([projected, hidden], 1)
        mixed = self._product(self._word_output[token], said, self._output).tanh_()
        return self._product(self._bias, mixed, self._words), DecoderState(hidden, cell)
