"""The inputs of a training batch: annotation vectors with their augmentation, and the locations of words."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from glimpse_env.datasets import CaptionDataset, Shapes
from glimpse_env.features.build import open_features
from glimpse_env.features.table import FeatureTable
from train.captioner.augmentation import Mirrored, has_sides
from train.captioner.batches import CaptionBatch
from train.captioner.model import CaptioningModel


class TrainingInputs:
    """Inputs of the images of a training split.

    The output of the CNN's frozen part is read from a table; the rest of the encoder runs with gradients.

    Args:
        dataset: the training split.
        model: its CNN has its final weights, but for the stage that is tuned.
        mirror: whether half the images are shown mirrored, except those whose captions name left or right.
        dropout: share of the annotations' values that are dropped.
        device: torch device.
    """

    def __init__(
        self, dataset: CaptionDataset, model: CaptioningModel, mirror: bool, dropout: float, device: str
    ) -> None:
        self.dataset, self.model, self.dropout, self.device = dataset, model, dropout, device
        frozen = model.captioner.encoder.frozen_part()
        self.features = open_features(dataset, frozen)
        self.mirrored: FeatureTable | None = None
        if mirror:
            self.mirrored = open_features(Mirrored(dataset), frozen)
            self.may_mirror = np.array([not has_sides(dataset, row) for row in range(len(dataset))])

    def annotations(self, rows: Tensor) -> Tensor:
        """Annotation vectors of images (N,), (N, L, D), float32."""
        indices = rows.cpu().numpy()
        features = self.features[indices]
        if self.mirrored is not None:
            flipped = (torch.rand(len(rows)) < 0.5).numpy() & self.may_mirror[indices]
            features[flipped] = self.mirrored[indices[flipped]]
        annotations = self.model.captioner.encoder.finish(torch.from_numpy(features).to(self.device).float())
        return nn.functional.dropout(annotations, self.dropout)

    def word_locations(self, batch: CaptionBatch) -> Tensor:
        """The location each word should be read from, (N, K, T), int64; −1 for none. Only Shapes has any."""
        locations = torch.full_like(batch.tokens[..., 1:], -1)
        if isinstance(self.dataset, Shapes):
            for n, row in enumerate(batch.rows.tolist()):
                for k, length in enumerate(batch.lengths[n].tolist()):
                    words = self.model.captioner.vocabulary.decode(batch.tokens[n, k, 1 : length + 1].tolist())
                    locations[n, k, :length] = torch.tensor(self.dataset.glimpses(row, words[:-1]))
        return locations
