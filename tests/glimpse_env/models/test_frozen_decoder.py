"""FrozenDecoder decodes the words of CaptionDecoder."""

from __future__ import annotations

import copy

import pytest
import torch

from glimpse_env.models.captioner import load_captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig, DecoderState
from glimpse_env.models.frozen_decoder import CHUNK, FrozenDecoder

B, T, L = 100, 100, 7


def walk(decoder: CaptionDecoder, frozen: FrozenDecoder, steps: int, seed: int = 0):
    """Steps of both decoders on random contexts and the words of ``decoder``: both logits and both states."""
    generator = torch.Generator().manual_seed(seed)
    annotations = torch.randn(B, L, decoder.config.feature_dim, generator=generator)
    with torch.inference_mode():
        state, frozen_state = decoder.init_state(annotations), frozen.init_state_from_means(annotations.mean(1))
        token = torch.randint(decoder.config.vocab_size, (B,), generator=generator)
        for _ in range(steps):
            location = torch.randint(L, (B,), generator=generator)
            context = annotations[torch.arange(B), location]
            logits, state = decoder.step(context, token, state)
            frozen_logits, frozen_state = frozen.step(context, token, frozen_state)
            yield logits, frozen_logits, state, frozen_state
            token = logits.argmax(-1)


@pytest.mark.parametrize("name", ["shapes", "flickr8k"])
def test_ten_thousand_words_are_those_of_the_caption_decoder(name):
    decoder = load_captioner(name).decoder
    differences = 0
    for logits, frozen_logits, state, frozen_state in walk(decoder, FrozenDecoder(decoder), T):
        torch.testing.assert_close(frozen_logits, logits, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(frozen_state.hidden, state.hidden, atol=1e-4, rtol=1e-4)
        best = logits.topk(2, -1).values
        clear = best[:, 0] - best[:, 1] > 1e-3
        assert torch.equal(frozen_logits.argmax(-1)[clear], logits.argmax(-1)[clear])
        differences += int((frozen_logits.argmax(-1) != logits.argmax(-1)).sum())
    assert differences <= 2  # of 10,000: only ties may be broken differently


@pytest.mark.parametrize("init", ["mean", "zeros"])
def test_silent_words_are_never_decoded(init):
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(vocab_size=9, feature_dim=5, embed_dim=4, hidden_dim=6, init=init)).eval()
    for logits, frozen_logits, _, _ in walk(decoder, FrozenDecoder(decoder, silent=(0, 3)), 3):
        assert frozen_logits[:, [0, 3]].eq(-torch.inf).all()
        others = [1, 2, 4, 5, 6, 7, 8]
        torch.testing.assert_close(frozen_logits[:, others], logits[:, others])


def test_bfloat16_rounds_and_no_more():
    decoder = load_captioner("shapes").decoder
    same = total = 0
    for logits, frozen_logits, _, _ in walk(decoder, FrozenDecoder(decoder, dtype=torch.bfloat16), 3):
        assert frozen_logits.dtype == torch.float32
        same += int((frozen_logits.argmax(-1) == logits.argmax(-1)).sum())
        total += len(logits)
    assert same / total > 0.95
    assert not torch.equal(frozen_logits, logits)


def test_later_training_does_not_change_a_frozen_decoder():
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(vocab_size=9, feature_dim=5, embed_dim=4, hidden_dim=6, init="zeros")).eval()
    before = copy.deepcopy(decoder.state_dict())
    frozen = FrozenDecoder(decoder)
    state = DecoderState(torch.zeros(2, 6), torch.zeros(2, 6))
    arguments = torch.ones(2, 5), torch.tensor([1, 2]), state
    logits = frozen.step(*arguments)[0].clone()
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert not state.hidden.any()  # arguments are not overwritten
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1.0)
    again, _ = frozen.step(*arguments)
    assert torch.equal(logits, again)


@pytest.mark.parametrize("init", ["mean", "zeros"])
def test_later_training_does_not_change_a_frozen_initial_state(init):
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(vocab_size=9, feature_dim=5, embed_dim=4, hidden_dim=6, init=init)).train()
    frozen = FrozenDecoder(decoder)
    assert decoder.training
    means = torch.randn(2, 5)
    before = frozen.init_state_from_means(means)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(frozen.init_state_from_means(means).hidden, before.hidden)


@pytest.mark.parametrize("batch", [5, 2 * CHUNK + 3])
def test_steps_in_chunks_are_the_same(batch):
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(vocab_size=9, feature_dim=5, embed_dim=4, hidden_dim=6)).eval()
    frozen = FrozenDecoder(decoder)
    context, token = torch.randn(batch, 5), torch.randint(9, (batch,))
    state = DecoderState(torch.randn(batch, 6), torch.randn(batch, 6))
    for _ in range(2):  # buffers are reused
        expected, after = decoder.step(context, token, state)
        logits, frozen_after = frozen.step(context, token, state)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(frozen_after, DecoderState(*after), atol=1e-5, rtol=1e-4)


def test_decoders_with_own_buffers_share_weights_and_nothing_else():
    torch.manual_seed(0)
    frozen = FrozenDecoder(CaptionDecoder(DecoderConfig(9, 5, embed_dim=4, hidden_dim=6)).eval())
    first, second = frozen.with_own_buffers(), frozen.with_own_buffers()
    state = DecoderState(torch.zeros(2, 6), torch.zeros(2, 6))
    logits, _ = first.step(torch.ones(2, 5), torch.tensor([1, 2]), state)
    before = logits.clone()
    second.step(-torch.ones(2, 5), torch.tensor([3, 4]), state)
    assert torch.equal(logits, before)
    assert first._gates is second._gates is frozen._gates


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_captured_graph_decodes_as_the_cpu_does():
    decoder = load_captioner("flickr8k").decoder
    frozen, on_gpu = FrozenDecoder(decoder), FrozenDecoder(decoder, device="cuda")
    state, gpu_state = (
        DecoderState(*(torch.zeros(8, 512, device=device) for _ in range(2))) for device in ("cpu", "cuda")
    )
    token = torch.arange(4, 12)
    for _ in range(4):
        context = torch.randn(8, 1280)
        logits, state = frozen.step(context, token, state)
        gpu_logits, gpu_state = on_gpu.step(context.cuda(), token.cuda(), gpu_state)
        torch.testing.assert_close(gpu_logits.cpu(), logits, atol=2e-3, rtol=1e-3)
        token = logits.argmax(-1)
