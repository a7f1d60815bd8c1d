"""The losses of caption training under teacher forcing: the decoder reads the true words and predicts the next ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from agents.attention import AdditiveAttention, mask_scores
from agents.attention_agents import entropy, log_probability, sample_locations
from glimpse_env.models.decoder import CaptionDecoder, DecoderState, mean_annotation
from train.captioner.batches import CaptionBatch

Mode = Literal["soft", "hard", "straight-through", "fixed", "mean"]


class TeacherForcedBatch(NamedTuple):
    """A batch of captions under teacher forcing. Positions past a caption's end hold zeros.

    Attributes:
        loss: mean cross-entropy a word, with label smoothing, ().
        likelihood: log-probability of each true word, (N, K, T).
        mask: which positions are words, (N, K, T), bool.
        attended: Σ_t α_t, (N, K, L).
        log_alpha: log-probability of each location that was read, (N, K, T); of modes ``hard`` and ``fixed`` only.
        entropy: of α in nats, (N, K, T); of the same modes only.
        log_guided: log α at the location of ``locations``, (N, K, T); only where these are given.
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
    mode: Mode,
    label_smoothing: float = 0.0,
    locations: Tensor | None = None,
    suppressed: Sequence[int] = (),
    location_masks: Tensor | None = None,
) -> TeacherForcedBatch:
    """Run the decoder along true captions.

    Args:
        decoder: in training mode for dropout.
        attention: scores locations; None in mode ``mean``, and in mode ``fixed`` where no scores are needed.
        annotations: (N, L, D), float.
        batch: N images with K captions each.
        mode: ``soft`` mixes annotations, ``hard`` draws one location, ``straight-through`` draws one and lets the
            gradient of the words reach the scores through a relaxed draw (Jang et al. 2017), ``fixed`` reads the
            location in ``locations``, ``mean`` averages all annotations.
        label_smoothing: mass of the cross-entropy's target spread over all words.
        locations: the location each word should be read from, (N, K, T), int64; −1 for the previous word's.
        suppressed: ids of words that the decoder never emits, for captions drawn so; not with label smoothing.
        location_masks: which locations the images have, (N, L), bool; None where all have all.
    """
    mask = torch.arange(batch.tokens.shape[-1] - 1, device=batch.lengths.device) < batch.lengths.unsqueeze(-1)
    projected = decoder.project(annotations)
    reader = _ContextReader(projected, attention, annotations, mode, locations, mask, location_masks)
    embedded = decoder.embedding(batch.tokens[..., :-1])  # (N, K, T, E)
    hidden, context = _read_captions(decoder, reader, embedded)  # (M, H), (M, P): M words
    logits = decoder.logits(embedded[mask], hidden, context).float()
    if suppressed:
        logits = logits.index_fill(-1, torch.tensor(suppressed, device=logits.device), -torch.inf)
    targets = batch.tokens[..., 1:][mask]
    loss = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    log_words = -functional.cross_entropy(logits, targets, reduction="none")
    likelihood = logits.new_zeros(mask.shape).masked_scatter(mask, log_words)
    return TeacherForcedBatch(loss, likelihood, mask, reader.attended, *reader.words())


def _read_captions(decoder: CaptionDecoder, reader: _ContextReader, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (M, H) and contexts (M, P) of the M words, from their embeddings (N, K, T, E).

    The loop over words leaves out slot k of every image once its longest caption has ended.
    """
    mask = reader.mask
    images, captions, _ = mask.shape
    gates = decoder.input_gates(embedded)  # (N, K, T, 4H)
    start = decoder.init_state(reader.annotations, reader.location_masks)
    state = DecoderState(*(tensor.unsqueeze(1).expand(images, captions, -1) for tensor in start))
    hiddens, contexts = [], []
    for t, active in enumerate(mask.any(0).sum(0).tolist()):
        state = DecoderState(*(tensor[:, :active] for tensor in state))
        context = reader.step(t, state.hidden)
        state = decoder.recur(gates[:, :active, t], context, state)
        hiddens.append(_pad(state.hidden, captions, dim=1))
        contexts.append(_pad(context, captions, dim=1))
    return torch.stack(hiddens, 2)[mask], torch.stack(contexts, 2)[mask]


@dataclass
class _ContextReader:
    """The contexts along the captions of a batch, and what they add to ``TeacherForcedBatch``."""

    projected: Tensor  # annotations projected by the decoder, (N, L, P)
    attention: AdditiveAttention | None
    annotations: Tensor
    mode: Mode
    locations: Tensor | None
    mask: Tensor
    location_masks: Tensor | None

    def __post_init__(self) -> None:
        self.keys = None if self.attention is None else self.attention.keys(self.annotations).unsqueeze(1)
        self.location = torch.zeros_like(self.mask[..., 0], dtype=torch.int64)  # the last of every caption, (N, K)
        self.attended = self.annotations.new_zeros(*self.location.shape, self.annotations.shape[1])
        self.log_alpha: list[Tensor] = []
        self.entropy: list[Tensor] = []
        self.log_guided: list[Tensor] = []

    def step(self, t: int, hidden: Tensor) -> Tensor:
        """The contexts (N, K', P) of word t of the first K' captions of each image, for hidden (N, K', H)."""
        active = hidden.shape[1]
        target = None if self.locations is None else self.locations[:, :active, t]
        if target is not None:
            self.location = torch.where(target >= 0, target, self.location[:, :active])
        if self.attention is None or self.keys is None:
            if self.mode == "fixed":
                return self._glimpse(self.location)
            return mean_annotation(self.projected, self.location_masks, keepdim=True).expand(-1, active, -1)
        masks = None if self.location_masks is None else self.location_masks.unsqueeze(1)
        scores = mask_scores(self.attention.scores(self.keys, hidden).float(), masks)  # (N, K', L)
        alpha = scores.softmax(-1)  # SAT eq. 5
        if target is not None:
            self.log_guided.append(log_probability(scores, target.clamp(min=0)) * (target >= 0))
        context = self._attend(scores, alpha)
        words = self.mask[:, :active, t].unsqueeze(-1)
        self.attended = self.attended + _pad(alpha * words, self.mask.shape[1], dim=1)
        return context

    def _attend(self, scores: Tensor, alpha: Tensor) -> Tensor:
        if self.mode == "straight-through":
            drawn = functional.gumbel_softmax(scores, tau=1, hard=True)  # (N, K', L), Jang et al. 2017
            return drawn.to(self.projected.dtype) @ self.projected
        if self.mode in ("hard", "fixed"):
            location = sample_locations(alpha.detach()) if self.mode == "hard" else self.location  # (N, K')
            context = self._glimpse(location)  # SAT eq. 9
            self.log_alpha.append(log_probability(scores, location))
            self.entropy.append(entropy(scores))
            return context
        return alpha.to(self.projected.dtype) @ self.projected  # (N, K', P), SAT eq. 13

    def _glimpse(self, location: Tensor) -> Tensor:
        """The projected annotations, (N, K', P), at one location a caption, (N, K')."""
        return self.projected.gather(1, location.unsqueeze(-1).expand(-1, -1, self.projected.shape[-1]))

    def words(self) -> Iterator[Tensor]:
        """``log_alpha``, ``entropy`` and ``log_guided`` of all words, (N, K, T); what the mode lacks is a zero, ()."""
        for values in (self.log_alpha, self.entropy, self.log_guided):
            padded = [_pad(value, self.mask.shape[1]) for value in values]
            yield torch.stack(padded, 2) * self.mask if padded else self.attended.new_zeros(())


def _pad(values: Tensor, slots: int, dim: int = -1) -> Tensor:
    """``values`` with zeros for the slots of captions that have ended."""
    missing = slots - values.shape[dim]
    return functional.pad(values, (0, missing) if dim == -1 else (0, 0, 0, missing))


def doubly_stochastic_penalty(unrolled: TeacherForcedBatch) -> Tensor:
    """Mean over captions and locations of (1 − Σ_t α_ti)²: attention should cover every location (SAT eq. 14)."""
    return (1 - unrolled.attended).square().mean()


def guidance_loss(unrolled: TeacherForcedBatch) -> Tensor:
    """Mean over words of −log α at the guided location (Liu et al. 2017, attention correctness)."""
    return -unrolled.log_guided.sum() / unrolled.mask.sum()


def reinforce_loss(unrolled: TeacherForcedBatch, entropy_bonus: float) -> Tensor:
    """REINFORCE for locations drawn in mode ``hard`` (SAT eq. 12), mean over words; its gradient reaches the scores.

    The reward is the log-probability of the words still to come. Every caption must stand twice in a row
    (``CaptionBatch.repeat(2)``): each copy is the other's baseline (leave-one-out, Kool et al. 2019).
    ``entropy_bonus`` is the weight of the entropy H[α] (SAT §4.1).
    """
    to_go = unrolled.likelihood.detach().flip(-1).cumsum(-1).flip(-1)  # (N, 2K, T)
    pairs = to_go.unflatten(1, (-1, 2))
    advantage = (pairs - pairs.flip(2)).flatten(1, 2)
    gain = advantage * unrolled.log_alpha + entropy_bonus * unrolled.entropy
    return -gain.sum() / unrolled.mask.sum()
