"""The unrolled losses against slow loops: one image, one caption, one word at a time."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from agents.attention import AdditiveAttention, AttentionConfig
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from train.captioner.batches import CaptionBatch
from train.captioner.losses import TeacherForcedBatch, doubly_stochastic_penalty, guidance_loss, reinforce_loss, unroll

V, D, H, L = 9, 5, 6, 4
LENGTHS = torch.tensor([[6, 3, 3], [2, 2, 1], [5, 4, 1]])


def make_models(locations: int = L, init: str = "mean") -> tuple[CaptionDecoder, AdditiveAttention, Tensor]:
    """A decoder without dropout, an attention, and annotations (3, L, D), all far from their small starts."""
    torch.manual_seed(3)
    decoder = CaptionDecoder(DecoderConfig(V, D, 7, H, 4, init=init)).eval()
    attention = AdditiveAttention(AttentionConfig(D, H, 5))
    with torch.no_grad():
        for parameter in [*decoder.parameters(), *attention.parameters()]:
            parameter.mul_(3)
    return decoder, attention, torch.randn(len(LENGTHS), locations, D)


def make_batch(lengths: Tensor = LENGTHS) -> CaptionBatch:
    torch.manual_seed(4)
    tokens = torch.randint(4, V, (*lengths.shape, int(lengths.max()) + 1))
    tokens[..., 0] = 1
    tokens[torch.arange(tokens.shape[-1]) > lengths.unsqueeze(-1)] = 0
    return CaptionBatch(torch.arange(len(lengths)), tokens, lengths)


class Slow(NamedTuple):
    """What the loops find, laid out as ``TeacherForcedBatch``."""

    loss: Tensor
    likelihood: Tensor
    attended: Tensor
    log_alpha: Tensor
    entropy: Tensor


def loop(decoder, attention, annotations, batch, mode, smoothing=0.0, log_alpha=None) -> Slow:
    """Every caption by itself through ``decoder.step``.

    Hard attention takes the location whose log-probability is the one in ``log_alpha``.
    """
    images, captions, width = batch.tokens.shape
    losses = []
    likelihood, log_alphas, entropies = (torch.zeros(images, captions, width - 1) for _ in range(3))
    attended = torch.zeros(images, captions, annotations.shape[1])
    for n in range(images):
        for k in range(captions):
            state = decoder.init_state(annotations[n : n + 1])
            for t in range(int(batch.lengths[n, k])):
                if mode == "mean":
                    context = annotations[n].mean(0)
                else:
                    scores = attention(annotations[n : n + 1], state.hidden)[0]
                    alpha = torch.exp(scores) / torch.exp(scores).sum()
                    attended[n, k] += alpha.detach()
                    entropies[n, k, t] = -(alpha * alpha.log()).sum().detach()
                    context = sum(alpha[i] * annotations[n, i] for i in range(len(alpha)))
                if mode == "hard":
                    location = int((alpha.log() - log_alpha[n, k, t]).abs().argmin())
                    log_alphas[n, k, t] = alpha[location].log().detach()
                    context = annotations[n, location]
                token, target = batch.tokens[n, k, t : t + 1], batch.tokens[n, k, t + 1]
                logits, state = decoder.step(context.unsqueeze(0), token, state)
                log_p = logits[0].log_softmax(-1)
                likelihood[n, k, t] = log_p[target].detach()
                losses.append(-(1 - smoothing) * log_p[target] - smoothing * log_p.mean())
    return Slow(sum(losses) / len(losses), likelihood, attended, log_alphas, entropies)


def gradients(loss: Tensor, *modules) -> list[Tensor]:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True), strict=True
        )
    ]


@pytest.mark.parametrize("init", ["mean", "zeros"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["soft", "mean"])
def test_the_loss_is_that_of_a_loop_over_images_captions_and_words(mode, smoothing, init):
    decoder, attention, annotations = make_models(init=init)
    annotations.requires_grad_(True)
    batch = make_batch()
    fast = unroll(decoder, attention if mode == "soft" else None, annotations, batch, mode, smoothing)
    slow = loop(decoder, attention, annotations, batch, mode, smoothing)
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(fast.loss, slow.loss, **close)
    torch.testing.assert_close(fast.likelihood, slow.likelihood, **close)
    torch.testing.assert_close(fast.attended, slow.attended, **close)
    assert torch.equal(fast.mask, slow.likelihood != 0)
    modules = (decoder, attention) if mode == "soft" else (decoder,)
    for gradient, expected in zip(gradients(fast.loss, *modules), gradients(slow.loss, *modules), strict=True):
        torch.testing.assert_close(gradient, expected, **close)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, annotations, retain_graph=True)[0] for loss in (fast.loss, slow.loss)), **close
    )


def test_hard_words_follow_from_the_locations_that_were_drawn():
    decoder, attention, annotations = make_models()
    batch = make_batch().repeat(2)
    torch.manual_seed(0)
    fast = unroll(decoder, attention, annotations, batch, "hard", 0.1)
    slow = loop(decoder, attention, annotations, batch, "hard", 0.1, fast.log_alpha.detach())
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(fast.log_alpha, slow.log_alpha, **close)  # each is one location's log-probability
    torch.testing.assert_close(fast.likelihood, slow.likelihood, **close)
    torch.testing.assert_close(fast.entropy, slow.entropy, **close)
    torch.testing.assert_close(fast.attended, slow.attended, **close)
    torch.testing.assert_close(fast.loss, slow.loss, **close)
    again = unroll(decoder, attention, annotations, batch, "hard", 0.1)
    assert not torch.equal(again.log_alpha, fast.log_alpha)
    assert not any(gradient.any() for gradient in gradients(fast.loss, attention))  # a draw has no gradient


def test_hard_locations_are_drawn_as_often_as_their_weights_say():
    decoder, attention, annotations = make_models()
    many = 20_000
    batch = make_batch(torch.ones(many, 1, dtype=torch.int64))
    alike = annotations[:1].expand(many, -1, -1)
    with torch.no_grad():
        alpha = attention(alike[:1], decoder.init_state(alike[:1]).hidden)[0].softmax(-1)
        torch.manual_seed(0)
        drawn = unroll(decoder, attention, alike, batch, "hard").log_alpha.flatten().exp()
    for weight in alpha:
        share = ((drawn - weight).abs() < 1e-5).float().mean()
        assert abs(share - weight) < 5 * (weight * (1 - weight) / many) ** 0.5


@pytest.mark.parametrize("mode", ["soft", "mean"])
def test_padding_says_nothing(mode):
    decoder, attention, annotations = make_models()
    batch = make_batch()
    attention = attention if mode == "soft" else None
    before = unroll(decoder, attention, annotations, batch, mode)
    tokens = torch.where(torch.arange(batch.tokens.shape[-1]) > batch.lengths.unsqueeze(-1), 5, batch.tokens)
    after = unroll(decoder, attention, annotations, batch._replace(tokens=tokens), mode)
    for original, changed in zip(before, after, strict=True):
        assert torch.equal(original, changed)
    wider = torch.cat([batch.tokens, torch.zeros(3, 3, 2, dtype=torch.int64)], -1)
    padded = unroll(decoder, attention, annotations, batch._replace(tokens=wider), mode)
    torch.testing.assert_close(padded.loss, before.loss)


def test_images_do_not_mix():
    decoder, attention, annotations = make_models()
    batch = make_batch()
    full = unroll(decoder, attention, annotations, batch, "soft")
    for n in range(3):
        single = unroll(decoder, attention, annotations[n : n + 1], batch.subset(slice(n, n + 1)), "soft")
        steps = single.likelihood.shape[-1]
        torch.testing.assert_close(single.likelihood[0], full.likelihood[n, :, :steps])
        torch.testing.assert_close(single.attended[0], full.attended[n])


def test_doubly_stochastic_is_the_mean_square_of_what_is_missing_to_one_look():
    decoder, attention, annotations = make_models()
    batch = make_batch()
    term = doubly_stochastic_penalty(unroll(decoder, attention, annotations, batch, "soft"))
    attended = loop(decoder, attention, annotations, batch, "soft").attended
    expected = sum((1 - float(a)) ** 2 for a in attended.flatten()) / attended.numel()
    assert float(term.detach()) == pytest.approx(expected, rel=1e-5)
    assert any(gradient.any() for gradient in gradients(term, attention))


def test_looks_that_add_up_to_one_everywhere_cost_nothing():
    ones = torch.ones(2, 3, L)
    empty = torch.zeros(2, 3, 5)
    assert doubly_stochastic_penalty(TeacherForcedBatch(ones, empty, empty > 0, ones, empty, empty, empty)) == 0


def test_location_gradient_by_hand():
    """The return of a draw is what its caption still earns, less what the other copy does; padding counts nothing."""
    torch.manual_seed(0)
    mask = torch.arange(3) < torch.tensor([[3, 3, 2, 2], [1, 1, 1, 1]]).unsqueeze(-1)
    likelihood, log_alpha, entropy = (-torch.rand(2, 4, 3) * mask for _ in range(3))
    entropy = -entropy
    log_alpha.requires_grad_(True)
    nothing = torch.zeros(())
    loss = reinforce_loss(TeacherForcedBatch(nothing, likelihood, mask, nothing, log_alpha, entropy, nothing), 0.25)
    words, gain, slopes = 0, 0.0, torch.zeros(2, 4, 3)
    for n in range(2):
        for k in range(4):
            twin = k + 1 if k % 2 == 0 else k - 1
            for t in range(int(mask[n, k].sum())):
                advantage = float(likelihood[n, k, t:].sum() - likelihood[n, twin, t:].sum())
                gain += advantage * float(log_alpha[n, k, t].detach()) + 0.25 * float(entropy[n, k, t])
                slopes[n, k, t] = advantage
                words += 1
    assert float(loss.detach()) == pytest.approx(-gain / words, rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, log_alpha)[0], -slopes / words)


def test_location_gradient_points_where_all_paths_together_point():
    """Two locations, two words: the mean of many draws is the gradient of the expected log-likelihood, enumerated."""
    decoder, attention, annotations = make_models(locations=2)
    decoder.requires_grad_(False)
    annotations = annotations[:1] * 2
    words = make_batch(torch.tensor([[2]]))
    tokens = words.tokens[0, 0]
    parameters = list(attention.parameters())

    expected = torch.zeros(())
    for first in range(2):
        for second in range(2):
            state, log_p, log_likelihood = decoder.init_state(annotations), torch.zeros(()), 0.0
            for t, location in enumerate((first, second)):
                log_p = log_p + attention(annotations, state.hidden)[0].log_softmax(-1)[location]
                logits, state = decoder.step(annotations[:, location], tokens[t : t + 1], state)
                log_likelihood += float(logits[0].log_softmax(-1)[tokens[t + 1]])
            expected = expected + log_p.exp() * log_likelihood
    exact = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(-expected / 2, parameters)])

    torch.manual_seed(0)
    blocks, pairs = 40, 1_000
    batch = CaptionBatch(
        torch.zeros(pairs, dtype=torch.int64), words.tokens.repeat(pairs, 1, 1), words.lengths.repeat(pairs, 1)
    )
    estimates = []
    for _ in range(blocks):
        hard = unroll(decoder, attention, annotations.expand(pairs, -1, -1), batch.repeat(2), "hard")
        drawn = torch.autograd.grad(reinforce_loss(hard, 0.0), parameters)
        estimates.append(torch.cat([gradient.flatten() for gradient in drawn]))
    table = torch.stack(estimates)
    error = table.std(0) / blocks**0.5
    assert ((table.mean(0) - exact).abs() <= 5 * error + 1e-6).all()
    assert (exact.abs() > 20 * error).any()  # the draws are many enough to tell


def test_entropy_bonus_opens_the_draw():
    decoder, attention, annotations = make_models()
    batch = make_batch().repeat(2)
    torch.manual_seed(0)
    hard = unroll(decoder, attention, annotations, batch, "hard")
    bonus = reinforce_loss(hard, 1.0) - reinforce_loss(hard, 0.0)
    assert float(bonus.detach()) == pytest.approx(-float((hard.entropy.sum() / hard.mask.sum()).detach()), rel=1e-5)
    before = hard.entropy.sum()
    with torch.no_grad():
        for parameter, slope in zip(attention.parameters(), gradients(bonus, attention), strict=True):
            parameter.sub_(0.05 * slope)
    torch.manual_seed(0)
    assert unroll(decoder, attention, annotations, batch, "hard").entropy.sum() > before


def test_fixed_mode_reads_the_given_locations():
    decoder, attention, annotations = make_models()
    batch = make_batch()
    torch.manual_seed(5)
    locations = torch.randint(L, batch.tokens[..., 1:].shape)
    fast = unroll(decoder, attention, annotations, batch, "fixed", locations=locations)
    losses, log_alphas = [], []
    for n in range(len(annotations)):
        for k in range(locations.shape[1]):
            state = decoder.init_state(annotations[n : n + 1])
            for t in range(int(batch.lengths[n, k])):
                log_alpha = attention(annotations[n : n + 1], state.hidden)[0].log_softmax(-1)
                log_alphas.append(log_alpha[locations[n, k, t]])
                context = annotations[n, locations[n, k, t]].unsqueeze(0)
                logits, state = decoder.step(context, batch.tokens[n, k, t : t + 1], state)
                losses.append(-logits[0].log_softmax(-1)[batch.tokens[n, k, t + 1]])
    torch.testing.assert_close(fast.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(guidance_loss(fast), -torch.stack(log_alphas).mean(), atol=1e-5, rtol=1e-4)
    without = unroll(decoder, None, annotations, batch, "fixed", locations=locations)
    assert torch.equal(without.loss, fast.loss)
    assert torch.equal(without.likelihood, fast.likelihood)


def test_a_word_without_guidance_is_read_where_the_last_one_was():
    decoder, attention, annotations = make_models()
    batch = make_batch()
    locations = torch.full_like(batch.tokens[..., 1:], 2)
    first_only = locations.clone()
    first_only[..., 1:] = -1  # none after the first word
    fixed = unroll(decoder, attention, annotations, batch, "fixed", locations=locations)
    free = unroll(decoder, attention, annotations, batch, "fixed", locations=first_only)
    torch.testing.assert_close(fixed.likelihood, free.likelihood)
    assert free.log_guided[..., 0].ne(0).all()
    assert free.log_guided[..., 1:].eq(0).all()


def test_straight_through_words_are_read_from_one_location_and_teach_the_attention():
    decoder, attention, annotations = make_models()
    batch = make_batch()
    torch.manual_seed(0)
    drawn = unroll(decoder, attention, annotations, batch, "straight-through")
    attention.zero_grad()
    drawn.loss.backward()
    assert all(parameter.grad.any() for parameter in attention.parameters())
    alike = annotations[:, :1].expand_as(annotations)  # all locations look the same
    torch.manual_seed(0)
    single = unroll(decoder, attention, alike, batch, "straight-through")
    torch.testing.assert_close(single.loss, unroll(decoder, attention, alike, batch, "soft").loss)
    torch.testing.assert_close(single.attended, unroll(decoder, attention, alike, batch, "soft").attended)
