"""The caption decoder for inference: the step of ``CaptionDecoder`` in fewer and larger matrix products.

Weights are packed once, what depends on the last word alone is in tables, and nothing is stored for gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig, DecoderState, initial_state

CHUNK = 1024  # episodes that the CPU decodes at a time: more take memory and save no time


class _Buffers:
    """Intermediate results of a step of B episodes, reused by the next step.

    The context times β, the hidden state and the context are adjacent columns of one matrix. The gates read the first
    two. The output layer reads the last two, after the new hidden state has replaced the old one.
    """

    def __init__(self, config: DecoderConfig, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        context = config.context_dim
        inputs = torch.empty(batch, 2 * context + config.hidden_dim, dtype=dtype, device=device)  # (B, P + H + P)
        self.gated, self.hidden, self.context = inputs[:, :context], inputs[:, context:-context], inputs[:, -context:]
        self.gates_input, self.output_input = inputs[:, :-context], inputs[:, context:]
        self.gates = torch.empty(batch, 4 * config.hidden_dim, device=device)  # float32, as the output layer
        self.admit, self.forget, self.emit, self.candidate = self.gates.chunk(4, 1)  # (B, H) each
        self.mixed = torch.empty(batch, config.embed_dim, device=device)  # output layer, (B, E)


class FrozenDecoder:
    """A ``CaptionDecoder`` in evaluation mode, with a copy of its weights: later training does not change it.

    Its weights need no gradients. It is fastest under ``torch.inference_mode()``, which the dynamics use. tanh(x) is
    computed as 2σ(2x) − 1, with the factor in x folded into the weights where possible: on the CPU torch's tanh takes
    six times as long as its sigmoid.

    Args:
        decoder: the decoder to freeze.
        silent: ids of words that are never decoded: their logits are −∞.
        device: where it runs; on a GPU a step is one captured graph.
        dtype: of the matrix products: float32, or bfloat16, which is several times faster on processors that support
            it natively, and whose rounding changes a word now and then.
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
            decoder = copy.deepcopy(decoder).to(self.device)  # the argument stays on its device
        self._initial = copy.deepcopy(decoder.initial)
        if self._initial is not None:
            self._initial.requires_grad_(False)
        embedding = decoder.embedding.weight
        # Gates in the order of the packed product. One sigmoid computes all four: the candidate's tanh from 2x.
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
        self._words = _transposed(decoder.output_word.weight).to(dtype)  # (E, V)
        self._bias = decoder.output_word.bias.clone()
        if dtype == torch.float32:  # 2σ(2x) − 1 folded into the weights; σ near 1/2 has too few digits in bfloat16
            self._bias -= self._words.sum(0)
            self._words *= 2
        self._bias[list(silent)] = -torch.inf
        self._projection = _transposed(decoder.project_context.weight).to(dtype)  # (D, P)
        self._projection_bias = decoder.project_context.bias.to(dtype, copy=True)
        self._selector = _transposed(decoder.selector.weight)  # (H, 1)
        self._selector_bias = decoder.selector.bias.clone()
        self._buffers: dict[int, _Buffers] = {}  # by number of episodes
        self._logits: Tensor | None = None
        self._graph: _CapturedStep | None = None

    def __getstate__(self) -> dict[str, object]:
        """Copied and pickled without buffers and graphs, which are created when they are needed."""
        return {**self.__dict__, "_buffers": {}, "_logits": None, "_graph": None}

    def with_own_buffers(self) -> FrozenDecoder:
        """A decoder with the same weights in the same memory, but buffers of its own, for one more environment."""
        return copy.copy(self)

    def init_state_from_means(self, means: Tensor) -> DecoderState:
        """As ``CaptionDecoder.init_state``, of the mean annotations (B, D) of each image."""
        return initial_state(means, self._initial, self.config.hidden_dim)

    def project(self, context: Tensor) -> Tensor:
        """As ``CaptionDecoder.project``; the result, (…, P), has the products' dtype."""
        flat = context.flatten(0, -2).to(self.dtype)
        return torch.addmm(self._projection_bias, flat, self._projection).reshape(*context.shape[:-1], -1)

    def step(self, context: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """As ``CaptionDecoder.step``. The next step overwrites the logits; the state is in fresh tensors."""
        return self.step_projected(self.project(context), token, state)

    def step_projected(self, projected: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """``step`` with a context, (B, P), that ``project`` has mapped."""
        if self.device.type != "cuda":
            return self._step(projected, token, state)
        if self._graph is None or self._graph.batch != len(token):
            self._graph = _CapturedStep(self, len(token))
        return self._graph.replay(projected, token, state)

    def _step(self, projected: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        batch = len(token)
        if self._logits is None or len(self._logits) != batch:
            self._logits, self._buffers = torch.empty(batch, self.config.vocab_size, device=self.device), {}
        after = DecoderState(torch.empty_like(state.hidden), torch.empty_like(state.cell))
        if batch <= CHUNK or self.device.type == "cuda":
            self._step_chunk(projected, token, state, after, self._logits)
        else:
            chunks = [torch.split(value, CHUNK) for value in (projected, token, *state, *after, self._logits)]
            for contexts, tokens, *states, logits in zip(*chunks, strict=True):
                self._step_chunk(contexts, tokens, DecoderState(*states[:2]), DecoderState(*states[2:]), logits)
        return self._logits, after

    def _step_chunk(
        self, projected: Tensor, token: Tensor, state: DecoderState, after: DecoderState, logits: Tensor
    ) -> None:
        """A step of a few episodes, written to ``after`` and ``logits``."""
        batch = len(token)
        if batch not in self._buffers:
            self._buffers[batch] = _Buffers(self.config, batch, self.dtype, self.device)
        buffers = self._buffers[batch]
        admit, forget, emit, candidate = buffers.admit, buffers.forget, buffers.emit, buffers.candidate
        beta = torch.addmm(self._selector_bias, state.hidden, self._selector).sigmoid_()  # (B, 1)
        torch.mul(projected, beta.to(self.dtype), out=buffers.gated)
        buffers.hidden.copy_(state.hidden)
        buffers.context.copy_(projected)
        torch.index_select(self._word_gates, 0, token, out=buffers.gates)
        self._add_product(buffers.gates, buffers.gates_input, self._gates).sigmoid_()
        cell = torch.mul(forget, state.cell, out=after.cell).addcmul_(admit, candidate, value=2).sub_(admit)
        squashed = torch.mul(cell, -2, out=candidate).sigmoid_()  # tanh(cell) = 1 - 2 · squashed
        torch.addcmul(emit, emit, squashed, value=-2, out=after.hidden)
        buffers.hidden.copy_(after.hidden)
        torch.index_select(self._word_output, 0, token, out=buffers.mixed)
        self._add_product(buffers.mixed, buffers.output_input, self._output).sigmoid_()
        if self.dtype == torch.float32:
            torch.addmm(self._bias, buffers.mixed, self._words, out=logits)
        else:
            buffers.mixed.mul_(2).sub_(1)
            torch.add(buffers.mixed.to(self.dtype) @ self._words, self._bias, out=logits)

    def products(self, batch: int) -> Callable[[], None]:
        """A function that computes the matrix products of one step of ``batch`` episodes alone, of random numbers.

        They are a lower bound for the time of a step.
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
        """Add values · weights to ``added``, float32, in place."""
        return added.addmm_(values, weights) if self.dtype == torch.float32 else added.add_(values @ weights)


def _transposed(weight: Tensor) -> Tensor:
    """A copy of the transpose; ``contiguous`` would share the memory of a matrix with a single row."""
    return weight.t().clone(memory_format=torch.contiguous_format)


class _CapturedStep:
    """A step of B episodes as a CUDA graph: one launch for all its operators."""

    def __init__(self, decoder: FrozenDecoder, batch: int) -> None:
        config, device = decoder.config, decoder.device
        self.batch = batch
        self._projected = torch.zeros(batch, config.context_dim, dtype=decoder.dtype, device=device)
        self._token = torch.zeros(batch, dtype=torch.int64, device=device)
        self._state = DecoderState(*(torch.zeros(batch, config.hidden_dim, device=device) for _ in range(2)))
        inputs = (self._projected, self._token, self._state)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # once before the capture, so that libraries allocate their workspaces
            decoder._step(*inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits, self._after = decoder._step(*inputs)

    def replay(self, projected: Tensor, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """As ``FrozenDecoder.step_projected``."""
        self._projected.copy_(projected)
        self._token.copy_(token)
        self._state.hidden.copy_(state.hidden)
        self._state.cell.copy_(state.cell)
        self._graph.replay()
        return self._logits, DecoderState(self._after.hidden.clone(), self._after.cell.clone())
