"""The LSTM step from a context to word logits, against its equations written out again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig, DecoderState

V, D, E, H, P = 11, 5, 7, 6, 4


def make_decoder(**changes) -> CaptionDecoder:
    torch.manual_seed(0)
    config = DecoderConfig(**{"vocab_size": V, "feature_dim": D, "embed_dim": E, "hidden_dim": H, "context_dim": P})
    decoder = CaptionDecoder(DecoderConfig(**{**vars(config), **changes})).double().eval()
    with torch.no_grad():  # so that no parameter is exactly zero or one
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return decoder


def example(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, DecoderState]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    token = torch.randint(V, (batch,), generator=generator)
    return draw(batch, D), token, DecoderState(draw(batch, H), draw(batch, H))


def test_a_step_is_an_lstm_cell_with_a_gated_context_and_a_deep_output():
    decoder = make_decoder()
    context, token, state = example()
    cell = nn.LSTMCell(E + P, H).double()
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([decoder.input_gates.weight, decoder.context_gates.weight], 1))
        cell.weight_hh.copy_(decoder.recurrent_gates.weight)
        cell.bias_ih.copy_(decoder.input_gates.bias)
        cell.bias_hh.zero_()
    w = decoder.state_dict()
    embedded = w["embedding.weight"][token]
    projected = context @ w["project_context.weight"].T + w["project_context.bias"]
    beta = 1 / (1 + torch.exp(-(state.hidden @ w["selector.weight"].T + w["selector.bias"])))
    assert beta.std() > 0.01  # the gate is not constant
    hidden, memory = cell(torch.cat([embedded, beta * projected], 1), state)
    deep = embedded + hidden @ w["output_hidden.weight"].T + w["output_hidden.bias"]
    deep = deep + projected @ w["output_context.weight"].T + w["output_context.bias"]
    expected = torch.tanh(deep) @ w["output_word.weight"].T + w["output_word.bias"]

    logits, after = decoder.step(context, token, state)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(after.hidden, hidden)
    torch.testing.assert_close(after.cell, memory)


def test_a_step_is_project_recur_and_logits():
    decoder = make_decoder()
    context, token, state = example()
    logits, after = decoder.step(context, token, state)
    projected = decoder.project(context)
    recurred = decoder.recur(decoder.input_gates(decoder.embedding(token)), projected, state)
    assert torch.equal(recurred.hidden, after.hidden)
    assert torch.equal(recurred.cell, after.cell)
    assert torch.equal(decoder.logits(decoder.embedding(token), recurred.hidden, projected), logits)


def test_a_closed_gate_keeps_the_context_from_the_state_but_not_from_the_words():
    decoder = make_decoder()
    context, token, state = example()
    with torch.no_grad():
        decoder.selector.weight.zero_()
        decoder.selector.bias.fill_(-1e9)
    logits, after = decoder.step(context, token, state)
    changed, unmoved = decoder.step(context + 1, token, state)
    assert torch.equal(after.hidden, unmoved.hidden)
    assert not torch.allclose(logits, changed)


def test_projecting_and_mixing_commute():
    decoder = make_decoder()
    annotations = torch.randn(2, 9, D, dtype=torch.float64)
    alpha = torch.rand(2, 9, dtype=torch.float64).softmax(-1).unsqueeze(-1)
    mixed = (alpha * decoder.project(annotations)).sum(1)
    torch.testing.assert_close(mixed, decoder.project((alpha * annotations).sum(1)))


def test_any_leading_shape_is_a_batch():
    decoder = make_decoder()
    context, token, state = example(6)
    logits, after = decoder.step(context, token, state)
    folded = DecoderState(*(value.reshape(2, 3, H) for value in state))
    many, later = decoder.step(context.reshape(2, 3, D), token.reshape(2, 3), folded)
    torch.testing.assert_close(many.reshape(6, V), logits)
    torch.testing.assert_close(later.cell.reshape(6, H), after.cell)


def test_zeros_start_knows_nothing_of_the_image():
    decoder = make_decoder(init="zeros")
    annotations = torch.randn(2, 9, D, dtype=torch.float64)
    hidden, cell = decoder.init_state(annotations)
    assert hidden.shape == cell.shape == (2, H)
    assert not hidden.any()
    assert not cell.any()
    assert hidden.data_ptr() != cell.data_ptr()
    assert not any(name.startswith("initial") for name in decoder.state_dict())


def test_mean_start_is_an_mlp_of_the_mean_annotation():
    decoder = make_decoder()
    annotations = torch.randn(2, 9, D, dtype=torch.float64)
    hidden, cell = decoder.init_state(annotations)
    w = decoder.state_dict()
    middle = torch.tanh(annotations.sum(1) / 9 @ w["initial.0.weight"].T + w["initial.0.bias"])
    expected = torch.tanh(middle @ w["initial.2.weight"].T + w["initial.2.bias"])
    torch.testing.assert_close(torch.cat([hidden, cell], 1), expected)
    shuffled = decoder.init_state(annotations[:, torch.randperm(9)])
    torch.testing.assert_close(shuffled.hidden, hidden)


def test_starting_weights():
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(50, D, 20, 16, P))
    for gate in decoder.recurrent_gates.weight.split(16):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
    assert (decoder.input_gates.bias[16:32] == 1).all()  # the forget gate of LSTMCell's order: i, f, g, o
    rest = torch.cat([decoder.input_gates.bias[:16], decoder.input_gates.bias[32:]])
    assert (rest.abs() <= 1 / 20**0.5).all()  # a linear layer's own start
    for table in (decoder.embedding.weight, decoder.output_word.weight):
        assert table.abs().max() <= 0.1
        assert float(table.abs().mean().detach()) == pytest.approx(0.05, rel=0.1)  # uniform
    assert not decoder.output_word.bias.any()


def test_dropout_is_for_training_only():
    decoder = make_decoder(dropout=0.5)
    context, token, state = example()
    logits, after = decoder.step(context, token, state)
    assert torch.equal(decoder.step(context, token, state)[0], logits)
    decoder.train()
    drawn, drawn_after = decoder.step(context, token, state)
    again, _ = decoder.step(context, token, state)
    assert not torch.allclose(drawn, again)
    assert torch.equal(drawn_after.hidden, after.hidden)  # the recurrence is not dropped
    assert torch.equal(make_decoder(dropout=0.0).train().step(context, token, state)[0], logits)


@pytest.mark.parametrize("init", ["mean", "zeros"])
def test_gradients_reach_every_parameter(init):
    decoder = make_decoder(init=init)
    annotations = torch.randn(3, 9, D, dtype=torch.float64)
    state = decoder.init_state(annotations)
    token = torch.tensor([1, 2, 3])
    for _ in range(2):
        logits, state = decoder.step(annotations[:, 0], token, state)
    (logits.square().sum() + state.cell.square().sum()).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
