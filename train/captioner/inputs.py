"""The inputs of a training batch: annotation vectors with their augmentation, and the locations of words."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from glimpse_env.datasets import CaptionDataset, GroundedDataset
from glimpse_env.features.build import open_features
from train.captioner.augmentation import Mirrored, has_sides
from train.captioner.batches import CaptionBatch
from train.captioner.model import CaptioningModel
from train.captioner.options import Options


class TrainingInputs:
    """Inputs of the images of a training split.

    The output of the CNN's frozen part is read from a table; the rest of the encoder runs with gradients.

    Args:
        options: resolved options.
        dataset: the training split.
        model: its CNN has its final weights, but for the stage that is tuned.
    """

    def __init__(self, options: Options, dataset: CaptionDataset, model: CaptioningModel) -> None:
        self.options, self.dataset, self.model = options, dataset, model
        frozen = model.captioner.encoder.frozen_part()
        self.features = open_features(dataset, frozen)
        self.mirrored = open_features(Mirrored(dataset), frozen) if options.mirror else None
        if options.mirror:
            self.may_mirror = np.array([not has_sides(dataset, row) for row in range(len(dataset))])

    def annotations(self, rows: Tensor) -> Tensor:
        """Annotation vectors of images (N,), (N, L, D), float32."""
        indices = rows.cpu().numpy()
        features = self.features[indices]
        if self.mirrored is not None:
            flipped = (torch.rand(len(rows)) < 0.5).numpy() & self.may_mirror[indices]
            features[flipped] = self.mirrored[indices[flipped]]
        annotations = self.model.captioner.encoder.finish(torch.from_numpy(features).to(self.options.device).float())
        masks = self.location_masks(rows)
        if masks is not None:
            annotations = annotations * masks.unsqueeze(-1)
        return nn.functional.dropout(annotations, self.options.feature_dropout or 0.0)

    def location_masks(self, rows: Tensor) -> Tensor | None:
        """Which locations images (N,) have, (N, L), bool; None where all have all."""
        return self.features.location_masks(rows.cpu().numpy(), self.options.device)

    def word_locations(self, batch: CaptionBatch) -> Tensor:
        """The location each word should be read from, (N, K, T), int64; −1 for none."""
        locations = torch.full_like(batch.tokens[..., 1:], -1)
        if isinstance(self.dataset, GroundedDataset):
            for n, row in enumerate(batch.rows.tolist()):
                for k, length in enumerate(batch.lengths[n].tolist()):
                    words = self.model.captioner.vocabulary.decode(batch.tokens[n, k, 1 : length + 1].tolist())
                    locations[n, k, :length] = torch.tensor(self.dataset.glimpses(row, words[:-1]))
        return locations
