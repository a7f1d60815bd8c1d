"""Captions for cross-entropy training: the captions of an image side by side, images of like lengths together.

Knows how references become padded ids. It does not know models or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import CaptionDataset
from train.common.distributed import Processes

POOL = 16  # batches sorted by length together: long enough to pad little, short enough to stay shuffled


class CaptionBatch(NamedTuple):
    """N images with K captions each, the captions of an image from the longest to the shortest.

    Attributes:
        rows: images, (N,), int64.
        tokens: ``<start>``, the words, ``<end>`` where the caption fits, ``<pad>``: (N, K, T + 1), int64.
        lengths: number of words to predict, ``<end>`` included, (N, K), int64, descending along K.
    """

    rows: Tensor
    tokens: Tensor
    lengths: Tensor

    def repeat(self, times: int) -> CaptionBatch:
        """Every caption ``times`` times in a row."""
        return CaptionBatch(
            self.rows, self.tokens.repeat_interleave(times, 1), self.lengths.repeat_interleave(times, 1)
        )

    def part(self, images: slice | Tensor) -> CaptionBatch:
        """Some of the images, the padding cut to their own longest caption."""
        lengths = self.lengths[images]
        return CaptionBatch(self.rows[images], self.tokens[images, :, : int(lengths.max()) + 1], lengths)


class Part:
    """Some images of a batch, of which this process looks at those in its own share of the batch.

    Where there are none it looks at one image all the same, which counts nothing: all processes take the same steps.

    Args:
        whole: the batch.
        places: which of its images, (M,), int64.
        together: those that share the batch.

    Attributes:
        places: which of them are this process's.
        captions: their captions.
        words: their share of the words of all M images, which most terms of a loss are means over, ().
        images: their share of the M images, ().
    """

    def __init__(self, whole: CaptionBatch, places: Tensor, together: Processes) -> None:
        own = together.own(len(whole.rows))
        self.places = places[(places >= own.start) & (places < own.stop)]
        counted = len(self.places)
        if not counted:
            self.places = torch.tensor([min(own.start, len(whole.rows) - 1)])
        self.captions = whole if len(self.places) == len(whole.rows) else whole.part(self.places)
        lengths = self.captions.lengths
        self.words = together.share(lengths.sum() * bool(counted))
        self.images = together.share(torch.tensor(counted, device=lengths.device))

    def within(self, other: Part) -> Tensor:
        """Where these images stand among those of another part that has them all, (M',), int64."""
        return torch.searchsorted(other.places, self.places)


class CaptionBatches:
    """All captions of a split, an epoch at a time.

    Args:
        dataset: gives the references.
        vocabulary: gives the ids.
        rows: which images to use.
        images: N, images a batch.
        captions: K, captions an image; of more, K are drawn anew every epoch; fewer are repeated.
        max_length: T, longer captions are cut there and have no ``<end>``.
        references: gives the captions of a row; by default the dataset's.
    """

    def __init__(
        self,
        dataset: CaptionDataset,
        vocabulary: Vocabulary,
        rows: range,
        images: int,
        captions: int = 5,
        max_length: int = 20,
        references: Callable[[int], list[list[str]]] | None = None,
    ) -> None:
        references = references or dataset.references
        self._captions = [
            [[*vocabulary.encode(words), vocabulary.end][:max_length] for words in references(row)] for row in rows
        ]
        self._rows, self._images, self._per_image = rows, images, captions
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._captions) // self._images)

    def epoch(self, rng: np.random.Generator) -> Iterator[CaptionBatch]:
        """The batches of one epoch, in an order drawn from ``rng``."""
        chosen = [self._choose(captions, rng) for captions in self._captions]
        order = rng.permutation(len(chosen))
        pool = POOL * self._images
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            words = np.array([sum(map(len, chosen[i])) for i in part])
            part = part[np.argsort(words, kind="stable")]
            batches += [part[i : i + self._images] for i in range(0, len(part), self._images)]
        for i in rng.permutation(len(batches)):
            yield self._collate(batches[i], chosen)

    def _choose(self, captions: list[list[int]], rng: np.random.Generator) -> list[list[int]]:
        count = self._per_image
        if len(captions) > count:
            captions = [captions[i] for i in rng.choice(len(captions), count, replace=False)]
        repeated = [captions[i % len(captions)] for i in range(count)]
        return sorted(repeated, key=len, reverse=True)

    def _collate(self, images: np.ndarray, chosen: list[list[list[int]]]) -> CaptionBatch:
        lengths = torch.tensor([[len(caption) for caption in chosen[i]] for i in images])
        tokens = torch.full((len(images), self._per_image, int(lengths.max()) + 1), self._vocabulary.pad)
        tokens[:, :, 0] = self._vocabulary.start
        for n, i in enumerate(images):
            for k, caption in enumerate(chosen[i]):
                tokens[n, k, 1 : len(caption) + 1] = torch.tensor(caption)
        rows = torch.tensor([self._rows[i] for i in images])
        return CaptionBatch(rows, tokens, lengths)
