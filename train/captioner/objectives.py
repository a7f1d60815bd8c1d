"""What caption training minimises: one objective for each value of ``--attention``, and for each of its estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from train.captioner.batches import BatchShare, CaptionBatch
from train.captioner.inputs import TrainingInputs
from train.captioner.losses import (
    Mode,
    Unrolled,
    doubly_stochastic_penalty,
    guidance_loss,
    reinforce_loss,
    unroll,
)
from train.captioner.model import CaptioningModel
from train.captioner.options import Options
from train.common.distributed import Processes


class Objective(ABC):
    """A loss of batches of captions.

    Args:
        options: resolved options.
        model: what is trained.
        inputs: annotation vectors and locations of words.
    """

    trains_attention: ClassVar[bool] = True

    def __init__(self, options: Options, model: CaptioningModel, inputs: TrainingInputs) -> None:
        self.options, self.model, self.inputs = options, model, inputs

    @abstractmethod
    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        """The loss of this process's share of a batch; the sum over all processes is the batch's.

        Args:
            batch: the whole batch, on the device.
            processes: the processes that share it.
            remaining: share of the run that is still to come, from 1 to 0.
        """

    def unroll(
        self, annotations: Tensor, captions: CaptionBatch, mode: Mode, locations: Tensor | None = None
    ) -> Unrolled:
        """Run the decoder along captions."""
        attention = self.model.attention if self.trains_attention else None
        smoothing = self.options.label_smoothing or 0.0
        return unroll(self.model.captioner.decoder, attention, annotations, captions, mode, smoothing, locations)

    def penalty(self, soft: Unrolled) -> Tensor:
        """The weighted doubly stochastic term of SAT eq. 14."""
        return (self.options.doubly_stochastic or 0.0) * doubly_stochastic_penalty(soft)


class _WithoutAttention(Objective):
    """The decoder reads the mean of the annotations."""

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        share = _whole(batch, processes)
        annotations = self.inputs.annotations(share.captions.rows)
        return self.unroll(annotations, share.captions, "mean").loss * share.words


class _FixedLocations(Objective):
    """The decoder reads the locations of the words; the attention stays as it is."""

    trains_attention = False

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        share = _whole(batch, processes)
        annotations = self.inputs.annotations(share.captions.rows)
        locations = self.inputs.word_locations(share.captions)
        locations = add_end_locations(locations, share.captions.lengths, annotations.shape[1])
        return self.unroll(annotations, share.captions, "fixed", locations).loss * share.words


class _Soft(Objective):
    """Soft attention (SAT §4.2)."""

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        share = _whole(batch, processes)
        soft = self.unroll(self.inputs.annotations(share.captions.rows), share.captions, "soft")
        return soft.loss * share.words + self.penalty(soft) * share.images  # SAT eq. 14


class _GuidedSoft(_Soft):
    """Soft attention on half the images, word locations on the others; on both, attention learns these locations."""

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        guided = (self.options.guidance or 0.0) * remaining
        if not guided:
            return super().loss(batch, processes, remaining)
        share = _whole(batch, processes)
        first, second = _split(batch, 0.5, processes)
        annotations = self.inputs.annotations(share.captions.rows)
        locations = [self.inputs.word_locations(half.captions) for half in (first, second)]
        soft = self.unroll(annotations[first.positions_in(share)], first.captions, "soft", locations[0])
        fixed = self.unroll(annotations[second.positions_in(share)], second.captions, "fixed", locations[1])
        guidance = 0.5 * guided * (guidance_loss(soft) * first.words + guidance_loss(fixed) * second.words)
        penalty = self.penalty(soft) * first.images
        return 0.5 * (soft.loss * first.words + fixed.loss * second.words + penalty) + guidance


class _SemiSampling(Objective):
    """Hard attention on most images, soft attention on ``soft_share`` of them (SAT §4.1)."""

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        soft_share = self.options.soft_share
        share = _whole(batch, processes)
        first, second = _split(batch, soft_share, processes)
        annotations = self.inputs.annotations(share.captions.rows)
        loss = self.hard_loss(annotations[second.positions_in(share)], second, 1 - soft_share)
        if soft_share:
            soft = self.unroll(annotations[first.positions_in(share)], first.captions, "soft")
            loss = loss + soft_share * (soft.loss * first.words + self.penalty(soft) * first.images)
        return loss

    def hard_loss(self, annotations: Tensor, share: BatchShare, weight: float) -> Tensor:
        """The loss of drawn locations, by a relaxed draw; ``weight`` is that of the words."""
        return weight * self.unroll(annotations, share.captions, "straight-through").loss * share.words


class _ReinforceSemiSampling(_SemiSampling):
    """Semi-sampling whose drawn locations learn by REINFORCE (SAT eq. 12)."""

    def hard_loss(self, annotations: Tensor, share: BatchShare, weight: float) -> Tensor:
        hard = self.unroll(annotations, share.captions.repeat(2), "hard")
        loss = weight * hard.loss * share.words  # what the words learn of SAT eq. 12
        return loss + reinforce_loss(hard, self.options.entropy_bonus) * share.words


def make_objective(options: Options, model: CaptioningModel, inputs: TrainingInputs) -> Objective:
    """The objective of the options."""
    straight_through = options.estimator == "straight-through"
    kinds: dict[str, type[Objective]] = {
        "none": _WithoutAttention,
        "told": _FixedLocations,
        "soft": _GuidedSoft if options.guidance else _Soft,
        "semi": _SemiSampling if straight_through else _ReinforceSemiSampling,
    }
    return kinds[options.attention](options, model, inputs)


def _whole(batch: CaptionBatch, processes: Processes) -> BatchShare:
    """This process's share of all images of a batch."""
    return BatchShare(batch, torch.arange(len(batch.rows)), processes)


def _split(batch: CaptionBatch, soft_share: float, processes: Processes) -> tuple[BatchShare, BatchShare]:
    """This process's shares of the images with soft attention and of the others."""
    soft, hard = split_images(len(batch.rows), soft_share)
    return BatchShare(batch, soft, processes), BatchShare(batch, hard, processes)


def split_images(count: int, soft_share: float) -> tuple[Tensor, Tensor]:
    """Split images 0 to ``count`` − 1 into those with soft attention, evenly spread, and the others (SAT §4.1).

    All images of a batch that is too small to be split are in both.
    """
    index = torch.arange(count)
    soft = ((index + 1) * soft_share).floor() > (index * soft_share).floor()
    if soft_share and soft.all() | ~soft.any():
        return index, index
    return index[soft], index[~soft]


def add_end_locations(locations: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Locations of words, (N, K, T), with locations for ``<end>``: a caption ends when nothing new is seen.

    A third of them are any of ``count`` locations, a third the location of an earlier word, and a third −1, which stays
    at the last word's.
    """
    last = lengths.unsqueeze(-1) - 1
    draw = torch.rand(last.shape, device=locations.device)
    earlier = locations.gather(2, (torch.rand(last.shape, device=locations.device) * last).long())
    end = torch.where(draw < 2 / 3, earlier, torch.full_like(last, -1))
    end = torch.where(draw < 1 / 3, torch.randint(count, last.shape, device=locations.device), end)
    return locations.scatter(2, last, end)
