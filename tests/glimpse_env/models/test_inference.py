"""The decoder made for speaking says what the one that was trained says."""

from __future__ import annotations

import copy

import pytest
import torch

from glimpse_env.models.captioner import load_captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig, DecoderState
from glimpse_env.models.frozen_decoder import CHUNK, FrozenDecoder

B, T, L = 100, 100, 7


def walk(decoder: CaptionDecoder, frozen: FrozenDecoder, steps: int, seed: int = 0):
    """Random contexts and the unfolded decoder's words; after every step both logits and both states."""
    generator = torch.Generator().manual_seed(seed)
    annotations = torch.randn(B, L, decoder.config.feature_dim, generator=generator)
    with torch.inference_mode():
        state, folded = decoder.init_state(annotations), frozen.init_state(annotations.mean(1))
        token = torch.randint(decoder.config.vocab_size, (B,), generator=generator)
        for _ in range(steps):
            place = torch.randint(L, (B,), generator=generator)
            context = annotations[torch.arange(B), place]
            logits, state = decoder.step(context, token, state)
            said, folded = frozen.say(frozen.project(context), token, folded)
            yield logits, said, state, folded
            token = logits.argmax(-1)


@pytest.mark.parametrize("name", ["shapes", "flickr8k"])
def test_ten_thousand_words_are_those_of_the_unfolded_decoder(name):
    decoder = load_captioner(name).decoder
    apart = 0
    for logits, said, state, folded in walk(decoder, FrozenDecoder(decoder), T):
        torch.testing.assert_close(said, logits, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(folded.hidden, state.hidden, atol=1e-4, rtol=1e-4)
        best = logits.topk(2, -1).values
        clear = best[:, 0] - best[:, 1] > 1e-3
        assert torch.equal(said.argmax(-1)[clear], logits.argmax(-1)[clear])
        apart += int((said.argmax(-1) != logits.argmax(-1)).sum())
    assert apart <= 2  # of 10,000: only a tie may be told apart differently


@pytest.mark.parametrize("init", ["mean", "zeros"])
def test_silent_words_are_never_said(init):
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(vocab_size=9, feature_dim=5, embed_dim=4, hidden_dim=6, init=init)).eval()
    for logits, said, _, _ in walk(decoder, FrozenDecoder(decoder, silent=(0, 3)), 3):
        assert said[:, [0, 3]].eq(-torch.inf).all()
        others = [1, 2, 4, 5, 6, 7, 8]
        torch.testing.assert_close(said[:, others], logits[:, others])


def test_bfloat16_rounds_and_no_more():
    decoder = load_captioner("shapes").decoder
    same = total = 0
    for logits, said, _, _ in walk(decoder, FrozenDecoder(decoder, dtype=torch.bfloat16), 3):
        assert said.dtype == torch.float32
        same += int((said.argmax(-1) == logits.argmax(-1)).sum())
        total += len(said)
    assert same / total > 0.95
    assert not torch.equal(said, logits)


def test_what_is_frozen_does_not_follow_training_nor_disturb_it():
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(vocab_size=9, feature_dim=5, embed_dim=4, hidden_dim=6, init="zeros")).eval()
    before = copy.deepcopy(decoder.state_dict())
    frozen = FrozenDecoder(decoder)
    state = DecoderState(torch.zeros(2, 6), torch.zeros(2, 6))
    arguments = frozen.project(torch.ones(2, 5)), torch.tensor([1, 2]), state
    said = frozen.say(*arguments)[0].clone()
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert not state.hidden.any()  # nothing is written into what was handed in
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1.0)
    again, _ = frozen.say(*arguments)
    assert torch.equal(said, again)


@pytest.mark.parametrize("init", ["mean", "zeros"])
def test_the_start_is_frozen_too_and_the_decoder_is_left_as_it_is(init):
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(vocab_size=9, feature_dim=5, embed_dim=4, hidden_dim=6, init=init)).train()
    frozen = FrozenDecoder(decoder)
    assert decoder.training
    means = torch.randn(2, 5)
    before = frozen.init_state(means)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(frozen.init_state(means).hidden, before.hidden)


@pytest.mark.parametrize("batch", [5, 2 * CHUNK + 3])
def test_what_is_worked_out_in_chunks_is_the_same(batch):
    torch.manual_seed(0)
    decoder = CaptionDecoder(DecoderConfig(vocab_size=9, feature_dim=5, embed_dim=4, hidden_dim=6)).eval()
    frozen = FrozenDecoder(decoder)
    context, token = torch.randn(batch, 5), torch.randint(9, (batch,))
    state = DecoderState(torch.randn(batch, 6), torch.randn(batch, 6))
    for _ in range(2):  # scratch is used again
        expected, after = decoder.step(context, token, state)
        said, folded = frozen.say(frozen.project(context), token, state)
        torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(folded, DecoderState(*after), atol=1e-5, rtol=1e-4)


def test_speakers_share_weights_and_nothing_else():
    torch.manual_seed(0)
    frozen = FrozenDecoder(CaptionDecoder(DecoderConfig(9, 5, embed_dim=4, hidden_dim=6)).eval())
    one, other = frozen.speaker(), frozen.speaker()
    state = DecoderState(torch.zeros(2, 6), torch.zeros(2, 6))
    said, _ = one.say(one.project(torch.ones(2, 5)), torch.tensor([1, 2]), state)
    kept = said.clone()
    other.say(other.project(-torch.ones(2, 5)), torch.tensor([3, 4]), state)
    assert torch.equal(said, kept)
    assert one._gates is other._gates is frozen._gates


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_captured_graph_says_what_the_processor_says():
    decoder = load_captioner("flickr8k").decoder
    frozen, on_gpu = FrozenDecoder(decoder), FrozenDecoder(decoder, device="cuda")
    state, there = (DecoderState(torch.zeros(8, 512, device=d), torch.zeros(8, 512, device=d)) for d in ("cpu", "cuda"))
    token = torch.arange(4, 12)
    for _ in range(4):
        context = torch.randn(8, 1280)
        said, state = frozen.say(frozen.project(context), token, state)
        heard, there = on_gpu.say(on_gpu.project(context.cuda()), token.cuda(), there)
        torch.testing.assert_close(heard.cpu(), said, atol=2e-3, rtol=1e-3)
        token = said.argmax(-1)
