"""What caption training minimises: one objective for each value of ``--attention``, with or without guidance."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from train.captioner import losses
from train.captioner.batches import BatchShare, CaptionBatch
from train.captioner.inputs import TrainingInputs
from train.captioner.losses import Mode, TeacherForcedBatch
from train.captioner.model import CaptioningModel
from train.captioner.options import Options
from train.common.distributed import Processes


class Objective(ABC):
    """A loss of batches of captions."""

    def __init__(self, options: Options, model: CaptioningModel, inputs: TrainingInputs) -> None:
        self.options, self.inputs = options, inputs
        self.decoder = model.captioner.decoder
        self.attention = None if options.attention == "told" else model.attention

    @abstractmethod
    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        """The loss of this process's share of a batch; the sum over all processes is the batch's.

        ``remaining`` is the fraction of the run that is still to come, from 1 to 0.
        """

    def share(self, batch: CaptionBatch, processes: Processes) -> tuple[BatchShare, Tensor]:
        """This process's share of a batch, and its annotation vectors (N, L, D)."""
        share = BatchShare(batch, torch.arange(len(batch.rows)), processes)
        return share, self.inputs.annotations(share.captions.rows)

    def split(self, batch: CaptionBatch, processes: Processes, soft_share: float) -> list[tuple[BatchShare, Tensor]]:
        """Its shares of the images with soft attention and of the others, each with annotation vectors."""
        share, annotations = self.share(batch, processes)
        groups = [BatchShare(batch, images, processes) for images in split_images(len(batch.rows), soft_share)]
        return [(group, annotations[group.positions_in(share)]) for group in groups]

    def unroll(
        self, captions: CaptionBatch, annotations: Tensor, mode: Mode, locations: Tensor | None = None
    ) -> TeacherForcedBatch:
        """Run the decoder along captions."""
        masks, smoothing = self.inputs.location_masks(captions.rows), self.options.label_smoothing or 0.0
        models = (self.decoder, self.attention)
        return losses.unroll(*models, annotations, captions, mode, smoothing, locations, location_masks=masks)

    def soft_loss(self, share: BatchShare, annotations: Tensor) -> Tensor:
        """The loss of soft attention (SAT eq. 14)."""
        soft = self.unroll(share.captions, annotations, "soft")
        return soft.loss * share.words + self.penalty(soft, share)

    def penalty(self, soft: TeacherForcedBatch, share: BatchShare) -> Tensor:
        """The doubly stochastic term of SAT eq. 14."""
        return (self.options.doubly_stochastic or 0.0) * losses.doubly_stochastic_penalty(soft) * share.images


class _WithoutAttention(Objective):
    """The decoder reads the mean of the annotations."""

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        share, annotations = self.share(batch, processes)
        return self.unroll(share.captions, annotations, "mean").loss * share.words


class _FixedLocations(Objective):
    """The decoder reads the locations of the words; the attention stays as it is."""

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        share, annotations = self.share(batch, processes)
        locations = self.inputs.word_locations(share.captions)
        masks = self.inputs.location_masks(share.captions.rows)
        locations = add_end_locations(locations, share.captions.lengths, annotations.shape[1], masks)
        return self.unroll(share.captions, annotations, "fixed", locations).loss * share.words


class _Soft(Objective):
    """Soft attention (SAT §4.2).

    With guidance, half the images are read softly, the others at word locations; on both, attention learns these.
    """

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        guided = (self.options.guidance or 0.0) * remaining
        if not guided:
            return self.soft_loss(*self.share(batch, processes))
        (first, of_first), (second, of_second) = self.split(batch, processes, 0.5)
        soft = self.unroll(first.captions, of_first, "soft", self.inputs.word_locations(first.captions))
        fixed = self.unroll(second.captions, of_second, "fixed", self.inputs.word_locations(second.captions))
        guidance = losses.guidance_loss(soft) * first.words + losses.guidance_loss(fixed) * second.words
        words = soft.loss * first.words + fixed.loss * second.words
        return 0.5 * (words + self.penalty(soft, first)) + 0.5 * guided * guidance


class _SemiSampling(Objective):
    """Hard attention on most images, soft attention on ``soft_share`` of them (SAT §4.1).

    Drawn locations learn by a relaxed draw or by REINFORCE (SAT eq. 12).
    """

    def loss(self, batch: CaptionBatch, processes: Processes, remaining: float) -> Tensor:
        share = self.options.soft_share
        soft, (hard, annotations) = self.split(batch, processes, share)
        relaxed = self.options.estimator == "straight-through"
        captions = hard.captions if relaxed else hard.captions.repeat(2)
        drawn = self.unroll(captions, annotations, "straight-through" if relaxed else "hard")
        loss = (1 - share) * drawn.loss * hard.words  # what the words learn of SAT eq. 12
        if not relaxed:
            loss = loss + losses.reinforce_loss(drawn, self.options.entropy_bonus) * hard.words
        return loss + share * self.soft_loss(*soft) if share else loss


def make_objective(options: Options, model: CaptioningModel, inputs: TrainingInputs) -> Objective:
    """The objective of the options."""
    objectives: dict[str, type[Objective]] = {
        "none": _WithoutAttention,
        "told": _FixedLocations,
        "soft": _Soft,
        "semi": _SemiSampling,
    }
    return objectives[options.attention](options, model, inputs)


def split_images(count: int, soft_share: float) -> tuple[Tensor, Tensor]:
    """Split images 0 to ``count`` − 1 into those with soft attention, evenly spread, and the others (SAT §4.1).

    All images of a batch that is too small to be split are in both.
    """
    index = torch.arange(count)
    soft = ((index + 1) * soft_share).floor() > (index * soft_share).floor()
    if soft_share and soft.all() | ~soft.any():
        return index, index
    return index[soft], index[~soft]


def add_end_locations(locations: Tensor, lengths: Tensor, count: int, masks: Tensor | None = None) -> Tensor:
    """Locations of words, (N, K, T), with locations for ``<end>``: a caption ends when nothing new is seen.

    A third of them are any of ``count`` locations, or of those of ``masks`` (N, L), bool; a third the location of an
    earlier word; and a third −1, which stays at the last word's.
    """
    last = lengths.unsqueeze(-1) - 1
    draw = torch.rand(last.shape, device=locations.device)
    earlier = locations.gather(2, (torch.rand(last.shape, device=locations.device) * last).long())
    end = torch.where(draw < 2 / 3, earlier, torch.full_like(last, -1))
    if masks is None:
        anywhere = torch.randint(count, last.shape, device=locations.device)
    else:
        anywhere = masks.float().multinomial(last.shape[1], replacement=True).unsqueeze(-1)
    end = torch.where(draw < 1 / 3, anywhere, end)
    return locations.scatter(2, last, end)
