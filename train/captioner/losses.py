"""The losses of caption training: the true words are fed, the next ones predicted, the attention unrolled beside them.

Knows decoder, attention and a batch of captions. It does not know datasets, optimisers or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from agents.attention import AdditiveAttention
from agents.attention_agents import entropy, log_probability, sample_locations
from glimpse_env.models.decoder import CaptionDecoder, DecoderState
from train.captioner.batches import CaptionBatch

Look = Literal["soft", "hard", "straight-through", "told", "mean"]


class Unrolled(NamedTuple):
    """A batch of captions under teacher forcing. Positions past a caption's end hold zeros.

    Attributes:
        loss: mean cross-entropy a word, with label smoothing, ().
        likelihood: log-probability of each true word, (N, K, T).
        mask: which positions are words, (N, K, T), bool.
        attended: Σ_t α_t, (N, K, L).
        log_alpha: log-probability of each drawn location, (N, K, T); of hard attention only.
        entropy: of α in nats, (N, K, T); of hard attention only.
        log_guided: log α at the place a word should be read from, (N, K, T); where there is guidance only.
    """

    loss: Tensor
    likelihood: Tensor
    mask: Tensor
    attended: Tensor
    log_alpha: Tensor
    entropy: Tensor
    log_guided: Tensor


def unroll(
    decoder: CaptionDecoder,
    attention: AdditiveAttention | None,
    annotations: Tensor,
    batch: CaptionBatch,
    look: Look,
    label_smoothing: float = 0.0,
    looks: Tensor | None = None,
    silent: Sequence[int] = (),
) -> Unrolled:
    """Run the decoder along true captions.

    What does not change from word to word is done once: annotations are projected once an image, input gates and
    output words once a caption. A caption that has ended takes no further part: slot k of every image is dropped once
    its longest caption has ended.

    Args:
        decoder: in training mode for dropout.
        attention: scores locations; None when ``look`` is ``mean``, and where nobody asks what it would have scored.
        annotations: (N, L, D), float.
        batch: N images with K captions each.
        look: ``soft`` mixes annotations, ``hard`` draws one location, ``straight-through`` draws one and lets the
            gradient of the words reach the scores through a relaxed draw (Jang et al. 2017), ``told`` reads the
            location of ``looks``, ``mean`` pools them.
        label_smoothing: mass of the cross-entropy's target spread over all words.
        looks: guidance, the location each word should be read from, (N, K, T), int64, −1 for none.
        silent: ids of words that cannot be said, for captions that were drawn so; without label smoothing.
    """
    images, captions, width = batch.tokens.shape
    steps = width - 1
    lengths = batch.lengths
    mask = torch.arange(steps, device=lengths.device) < lengths.unsqueeze(-1)  # (N, K, T)
    projected = decoder.project(annotations)  # (N, L, P)
    keys = attention.keys(annotations).unsqueeze(1) if attention is not None else None  # (N, 1, L, A)
    embedded = decoder.embedding(batch.tokens[..., :-1])  # (N, K, T, E)
    gates = decoder.input_gates(embedded)  # (N, K, T, 4H)
    start = decoder.init_state(annotations)
    state = DecoderState(*(part.unsqueeze(1).expand(images, captions, -1) for part in start))
    alive = (lengths.amax(0).unsqueeze(0) > torch.arange(steps, device=lengths.device).unsqueeze(1)).sum(1).tolist()

    hiddens, contexts, log_alphas, entropies, guided = [], [], [], [], []
    told = torch.zeros_like(lengths)
    attended = annotations.new_zeros(images, captions, annotations.shape[1])
    for t, active in enumerate(alive):
        state = DecoderState(*(part[:, :active] for part in state))
        if looks is not None:
            wanted = looks[:, :active, t]
            told = torch.where(wanted >= 0, wanted, told[:, :active])  # nowhere in particular: where it was
        if attention is None or keys is None:
            context = _read(projected, told) if look == "told" else projected.mean(1, keepdim=True)
            context = context.expand(-1, active, -1)
        else:
            scores = attention.scores(keys, state.hidden).float()  # (N, active, L)
            alpha = scores.softmax(-1)  # SAT eq. 5
            if looks is not None:
                guided.append(_pad(log_probability(scores, wanted.clamp(min=0)) * (wanted >= 0), captions))
            if look == "straight-through":
                drawn = functional.gumbel_softmax(scores, tau=1, hard=True)  # (N, active, L)
                context = drawn.to(projected.dtype) @ projected
            elif look in ("hard", "told"):
                locations = sample_locations(alpha.detach()) if look == "hard" else told  # (N, active)
                context = _read(projected, locations)  # SAT eq. 9
                log_alphas.append(_pad(log_probability(scores, locations), captions))
                entropies.append(_pad(entropy(scores), captions))
            else:
                context = alpha.to(projected.dtype) @ projected  # (N, active, P), SAT eq. 13
            said = mask[:, :active, t].unsqueeze(-1)
            attended = attended + _pad(alpha * said, captions, dim=1)
        state = decoder.recur(gates[:, :active, t], context, state)
        hiddens.append(_pad(state.hidden, captions, dim=1))
        contexts.append(_pad(context, captions, dim=1))

    hidden, context = torch.stack(hiddens, 2)[mask], torch.stack(contexts, 2)[mask]  # (M, H), (M, P): M words
    logits = decoder.logits(embedded[mask], hidden, context).float()
    if silent:
        logits = logits.index_fill(-1, torch.tensor(silent, device=logits.device), -torch.inf)
    targets = batch.tokens[..., 1:][mask]
    loss = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    likelihood = logits.new_zeros(mask.shape).masked_scatter(
        mask, -functional.cross_entropy(logits, targets, reduction="none")
    )
    nothing = logits.new_zeros(())
    return Unrolled(
        loss,
        likelihood,
        mask,
        attended,
        torch.stack(log_alphas, 2) * mask if log_alphas else nothing,
        torch.stack(entropies, 2) * mask if entropies else nothing,
        torch.stack(guided, 2) * mask if guided else nothing,
    )


def _read(projected: Tensor, locations: Tensor) -> Tensor:
    """What is seen, (N, K, P), at a location for each of K captions of N images, (N, K)."""
    return projected.gather(1, locations.unsqueeze(-1).expand(-1, -1, projected.shape[-1]))


def _pad(values: Tensor, slots: int, dim: int = -1) -> Tensor:
    """``values`` with zeros for the slots that took no part."""
    missing = slots - values.shape[dim]
    return functional.pad(values, (0, missing) if dim == -1 else (0, 0, 0, missing))


def doubly_stochastic(unrolled: Unrolled) -> Tensor:
    """Mean over captions and locations of (1 − Σ_t α_ti)²: every place deserves a look (SAT eq. 14)."""
    return (1 - unrolled.attended).square().mean()


def guidance(unrolled: Unrolled) -> Tensor:
    """Mean −log α over words of the place each should be read from (Liu et al. 2017, attention correctness)."""
    return -unrolled.log_guided.sum() / unrolled.mask.sum()


def location_gradient(unrolled: Unrolled, entropy_bonus: float) -> Tensor:
    """REINFORCE for drawn locations (SAT eq. 12), on the log-probability of the words still to come.

    Captions must stand twice in a row (``CaptionBatch.repeat(2)``): each is the other's baseline (leave-one-out, Kool
    et al. 2019). The entropy is that of SAT §4.1.

    Args:
        unrolled: of hard attention.
        entropy_bonus: weight of the entropy H[α] that keeps the draw open.

    Returns:
        A loss whose gradient reaches the scores, mean over words, ().
    """
    to_go = unrolled.likelihood.detach().flip(-1).cumsum(-1).flip(-1)  # (N, 2K, T)
    pairs = to_go.unflatten(1, (-1, 2))
    advantage = (pairs - pairs.flip(2)).flatten(1, 2)
    gain = advantage * unrolled.log_alpha + entropy_bonus * unrolled.entropy
    return -gain.sum() / unrolled.mask.sum()


def running_mean(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """An exponential mean of weights that forgets its start: after n updates the decay is at most (1 + n) / (10 + n).

    With a constant decay of 0.998 the weights of the first step still weigh a third after 560.
    """

    def update(mean: Tensor, weights: Tensor, count: Tensor | int) -> Tensor:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        return torch.lerp(mean, weights, share)

    return update


def shares(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Which of ``count`` images are read softly and which hard (SAT §4.1): a share of them, spread evenly.

    A batch too small to be shared is read both ways.
    """
    place = torch.arange(count)
    softly = ((place + 1) * share).floor() > (place * share).floor()
    if share and softly.all() | ~softly.any():
        return place, place
    return place[softly], place[~softly]


def anywhere_at_last(looks: Tensor, lengths: Tensor, locations: int) -> Tensor:
    """``looks`` of whole captions, (N, K, T), with glimpses for ``<end>``: a caption ends when there is nothing new.

    A third of them go to any location, a third to where an earlier word was read, and a third stay where the last was.
    """
    last = lengths.unsqueeze(-1) - 1
    kind = torch.rand(last.shape, device=looks.device)
    earlier = looks.gather(2, (torch.rand(last.shape, device=looks.device) * last).long())
    end = torch.where(kind < 2 / 3, earlier, torch.full_like(last, -1))
    end = torch.where(kind < 1 / 3, torch.randint(locations, last.shape, device=looks.device), end)
    return looks.scatter(2, last, end)
