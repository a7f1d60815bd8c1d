"""The caption decoder made for speaking: weights packed once, words folded into tables, nothing kept for gradients.

Says what ``CaptionDecoder.step`` says, in fewer and larger products. It does not know who looks or when a caption ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from glimpse_env.models.decoder import CaptionDecoder, DecoderState, initial_state

CHUNK = 1024  # episodes worked out at a time on the CPU: more of them take memory and save no time


class _Scratch(NamedTuple):
    """What a word of B episodes is worked out in, used again for the next.

    Three stretches of one matrix, [gated context; hidden before; context], (B, P + H + P), of which the gates read the
    first two and the output layer, when the new hidden state has taken the place of the old one, the last two.

    Attributes:
        gated: (B, P).
        hidden: (B, H).
        context: (B, P).
        first: (B, P + H).
        second: (B, H + P).
        gates: (B, 4H), float32.
        admit: and three more stretches of the gates, (B, H).
        mixed: the output layer, (B, E), float32.
    """

    gated: Tensor
    hidden: Tensor
    context: Tensor
    first: Tensor
    second: Tensor
    gates: Tensor
    admit: Tensor
    forget: Tensor
    emit: Tensor
    candidate: Tensor
    mixed: Tensor


class FrozenDecoder:
    """A ``CaptionDecoder`` in evaluation mode. Weights are packed now: what is trained later is not heard.

    None of them asks for gradients; under ``torch.inference_mode()``, as the dynamics call it, a word costs least.
    Hyperbolic tangents are 2σ(2x) − 1, 2x by the weights where it can be: torch's tanh takes six times as long as its
    sigmoid on the CPU.

    Args:
        decoder: what to freeze.
        silent: ids of words that are never said: their logits are −∞.
        device: where it runs; on a GPU a word is one captured graph.
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
        if any(parameter.device != self.device for parameter in decoder.parameters()):
            decoder = copy.deepcopy(decoder).to(self.device)  # what was handed in stays where it is
        self._initial = copy.deepcopy(decoder.initial)
        if self._initial is not None:
            self._initial.requires_grad_(False)
        embedding = decoder.embedding.weight
        # The gates in the order of the packed products; one sigmoid serves all four, the candidate's tanh doubled.
        admit, forget, candidate, emit = torch.arange(4 * self.config.hidden_dim, device=self.device).chunk(4)
        order = torch.cat([admit, forget, emit, candidate])
        doubled = torch.ones(4 * self.config.hidden_dim, device=self.device)
        doubled[-self.config.hidden_dim :] = 2
        self._word_gates = decoder.input_gates(embedding)[:, order] * doubled  # (V, 4H)
        gates = torch.cat([decoder.context_gates.weight, decoder.recurrent_gates.weight], 1)[order]
        self._gates = (gates.t() * doubled).contiguous().to(dtype)  # (P + H, 4H)
        self._word_output = 2 * (embedding + decoder.output_hidden.bias + decoder.output_context.bias)  # (V, E)
        output = torch.cat([decoder.output_hidden.weight, decoder.output_context.weight], 1)
        self._output = (2 * output.t()).contiguous().to(dtype)  # (H + P, E)
        self._words = _turned(decoder.output_word.weight).to(dtype)  # (E, V)
        self._bias = decoder.output_word.bias.clone()
        if dtype == torch.float32:  # 2σ(2x) − 1 once more, by the weights; in bfloat16 σ has too few digits beside 1/2
            self._bias -= self._words.sum(0)
            self._words *= 2
        self._bias[list(silent)] = -torch.inf
        self._projection = _turned(decoder.project_context.weight).to(dtype)  # (D, P)
        self._projection_bias = decoder.project_context.bias.to(dtype, copy=True)
        self._selector = _turned(decoder.selector.weight)  # (H, 1)
        self._selector_bias = decoder.selector.bias.clone()
        self._scratch: dict[int, _Scratch] = {}  # by number of episodes
        self._logits: Tensor | None = None
        self._graph: _CapturedWord | None = None

    def __getstate__(self) -> dict[str, object]:
        """Weights alone: scratch and graphs are made again where they are needed."""
        return {**self.__dict__, "_scratch": {}, "_logits": None, "_graph": None}

    def speaker(self) -> FrozenDecoder:
        """The same weights for one more who speaks: in memory of its own is only what a word is worked out in."""
        return copy.copy(self)

    def init_state(self, means: Tensor) -> DecoderState:
        """h₀ and c₀, (B, H), from mean annotations (B, D)."""
        return initial_state(means, self._initial, self.config.hidden_dim)

    def project(self, context: Tensor) -> Tensor:
        """Contexts (…, D) as (…, P), in the type of the products."""
        flat = context.flatten(0, -2).to(self.dtype)
        return torch.addmm(self._projection_bias, flat, self._projection).reshape(*context.shape[:-1], -1)

    def say(self, projected: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """One word: logits (B, V), which the next call overwrites, and the state after it, in fresh tensors.

        Args:
            projected: the projected context, (B, P), in the type of the products.
            token: the last word's id, (B,), int64.
            state: the state before the step.
        """
        if self.device.type != "cuda":
            return self._say(projected, token, state)
        if self._graph is None or self._graph.batch != len(token):
            self._graph = _CapturedWord(self, len(token))
        return self._graph.say(projected, token, state)

    def _say(self, projected: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        batch = len(token)
        if self._logits is None or len(self._logits) != batch:
            self._logits, self._scratch = torch.empty(batch, self.config.vocab_size, device=self.device), {}
        after = DecoderState(torch.empty_like(state.hidden), torch.empty_like(state.cell))
        if batch <= CHUNK or self.device.type == "cuda":
            self._say_chunk(projected, token, state, after, self._logits)
        else:
            values = (projected, token, *state, *after, self._logits)
            parts = [torch.split(value, CHUNK) for value in values]
            for contexts, tokens, *states, logits in zip(*parts, strict=True):
                self._say_chunk(contexts, tokens, DecoderState(*states[:2]), DecoderState(*states[2:]), logits)
        return self._logits, after

    def _say_chunk(
        self, projected: Tensor, token: Tensor, state: DecoderState, after: DecoderState, logits: Tensor
    ) -> None:
        """A word of a few episodes, written to ``after`` and ``logits``."""
        at = self._scratch_for(len(token))
        beta = torch.addmm(self._selector_bias, state.hidden, self._selector).sigmoid_()  # (B, 1)
        torch.mul(projected, beta.to(self.dtype), out=at.gated)
        at.hidden.copy_(state.hidden)
        at.context.copy_(projected)
        torch.index_select(self._word_gates, 0, token, out=at.gates)
        self._add_product(at.gates, at.first, self._gates).sigmoid_()
        cell = torch.mul(at.forget, state.cell, out=after.cell).addcmul_(at.admit, at.candidate, value=2).sub_(at.admit)
        emit, shrunk = at.emit, torch.mul(cell, -2, out=at.candidate).sigmoid_()
        torch.addcmul(emit, emit, shrunk, value=-2, out=after.hidden)  # emit · tanh(cell)
        at.hidden.copy_(after.hidden)
        torch.index_select(self._word_output, 0, token, out=at.mixed)
        self._add_product(at.mixed, at.second, self._output).sigmoid_()
        if self.dtype == torch.float32:
            torch.addmm(self._bias, at.mixed, self._words, out=logits)
        else:
            at.mixed.mul_(2).sub_(1)
            torch.add(at.mixed.to(self.dtype) @ self._words, self._bias, out=logits)

    def products(self, batch: int) -> Callable[[], None]:
        """The bare matrix products of one word of B episodes, in their order: what no step can do without.

        Args:
            batch: B.

        Returns:
            What does them, on random numbers, once a call.
        """
        sizes = (self._projection, self._selector, self._gates, self._output, self._words)
        values = [torch.randn(batch, len(weights), device=self.device).to(weights.dtype) for weights in sizes]
        results = [torch.empty(batch, weights.shape[1], dtype=weights.dtype, device=self.device) for weights in sizes]

        def multiply() -> None:
            with torch.inference_mode():
                for value, weights, result in zip(values, sizes, results, strict=True):
                    torch.mm(value, weights, out=result)

        return multiply

    def _add_product(self, added: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        """``added``, float32, to which values · weights has been added."""
        return added.addmm_(values, weights) if self.dtype == torch.float32 else added.add_(values @ weights)

    def _scratch_for(self, batch: int) -> _Scratch:
        if batch not in self._scratch:
            hidden, context = self.config.hidden_dim, self.config.context_dim
            read = torch.empty(batch, 2 * context + hidden, dtype=self.dtype, device=self.device)
            gates = torch.empty(batch, 4 * hidden, device=self.device)
            admit, forget, emit, candidate = gates.chunk(4, 1)
            self._scratch[batch] = _Scratch(
                gated=read[:, :context],
                hidden=read[:, context:-context],
                context=read[:, -context:],
                first=read[:, :-context],
                second=read[:, context:],
                gates=gates,
                admit=admit,
                forget=forget,
                emit=emit,
                candidate=candidate,
                mixed=torch.empty(batch, self.config.embed_dim, device=self.device),
            )
        return self._scratch[batch]


def _turned(weight: Tensor) -> Tensor:
    """The transpose of a matrix in memory of its own; ``contiguous`` would share that of a single row."""
    return weight.t().clone(memory_format=torch.contiguous_format)


class _CapturedWord:
    """A word of B episodes as a CUDA graph: one launch for all its operators.

    Args:
        decoder: says the word.
        batch: B.
    """

    def __init__(self, decoder: FrozenDecoder, batch: int) -> None:
        config, device = decoder.config, decoder.device
        self.batch = batch
        self._projected = torch.zeros(batch, config.context_dim, dtype=decoder.dtype, device=device)
        self._token = torch.zeros(batch, dtype=torch.int64, device=device)
        self._state = DecoderState(*(torch.zeros(batch, config.hidden_dim, device=device) for _ in range(2)))
        inputs = (self._projected, self._token, self._state)
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):  # once outside of the capture: libraries allocate what they need
            decoder._say(*inputs)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._said, self._after = decoder._say(*inputs)

    def say(self, projected: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """As ``FrozenDecoder.say``."""
        self._projected.copy_(projected)
        self._token.copy_(token)
        self._state.hidden.copy_(state.hidden)
        self._state.cell.copy_(state.cell)
        self._graph.replay()
        return self._said, DecoderState(self._after.hidden.clone(), self._after.cell.clone())
