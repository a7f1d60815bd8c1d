"""Batches of captions for cross-entropy training: all captions of an image side by side, similar lengths together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glimpse_env.core.vocabulary import Vocabulary
from train.common.distributed import Processes

_POOL = 16  # batches sorted by length together: long enough to pad little, short enough to stay shuffled


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

    @classmethod
    def from_ids(cls, rows: Tensor, captions: Sequence[Sequence[list[int]]], vocabulary: Vocabulary) -> CaptionBatch:
        """A batch of the word ids of K captions for each of N ``rows``; gives the captions ``<start>`` and padding."""
        lengths = torch.tensor([[len(caption) for caption in image] for image in captions])
        ids = [torch.tensor([vocabulary.start, *caption]) for image in captions for caption in image]
        tokens = pad_sequence(ids, batch_first=True, padding_value=vocabulary.pad)
        return cls(rows, tokens.unflatten(0, lengths.shape), lengths)

    def repeat(self, times: int) -> CaptionBatch:
        """Every caption ``times`` times in a row."""
        return CaptionBatch(self.rows, *(tensor.repeat_interleave(times, 1) for tensor in self[1:]))

    def subset(self, images: slice | Tensor) -> CaptionBatch:
        """Some of the images, with the padding cut to their longest caption."""
        lengths = self.lengths[images]
        return CaptionBatch(self.rows[images], self.tokens[images, :, : int(lengths.max()) + 1], lengths)


class BatchShare:
    """Some images of a batch, and of these the images that this process takes.

    A process without any takes one image that counts nothing, so that all processes run the same steps.

    Args:
        batch: the batch, which ``processes`` share.
        indices: some of its images, (M,), int64, ascending.

    Attributes:
        indices: this process's images among them, (M',).
        captions: their captions.
        words: their fraction of the words of all M images, over which most terms of a loss are means, ().
        images: their fraction of the M images, ().
    """

    def __init__(self, batch: CaptionBatch, indices: Tensor, processes: Processes) -> None:
        share = processes.batch_slice(len(batch.rows))
        self.indices = indices[(indices >= share.start) & (indices < share.stop)]
        count = len(self.indices)
        if not count:
            self.indices = torch.tensor([min(share.start, len(batch.rows) - 1)])
        self.captions = batch if len(self.indices) == len(batch.rows) else batch.subset(self.indices)
        lengths = self.captions.lengths
        self.words = processes.fraction(lengths.sum() * bool(count))
        self.images = processes.fraction(torch.tensor(count, device=lengths.device))

    def positions_in(self, share: BatchShare) -> Tensor:
        """The positions of these images in another share that contains them, (M',), int64."""
        return torch.searchsorted(share.indices, self.indices)


class CaptionBatches:
    """All captions of a split, an epoch at a time.

    Args:
        references: gives the captions of one of the ``rows``.
        images: N, images a batch.
        captions: K, captions an image. Of more, K are drawn every epoch; fewer are repeated.
        max_length: T; longer captions are cut there and have no ``<end>``.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rows: range,
        references: Callable[[int], list[list[str]]],
        images: int,
        captions: int = 5,
        max_length: int = 20,
    ) -> None:
        self._captions = [
            [[*vocabulary.encode(words), vocabulary.end][:max_length] for words in references(row)] for row in rows
        ]
        self._vocabulary, self._rows, self._images, self._per_image = vocabulary, rows, images, captions

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._captions) // self._images)

    def epoch(self, rng: np.random.Generator) -> Iterator[CaptionBatch]:
        """The batches of one epoch, in an order drawn from ``rng``."""
        drawn = [self._draw(captions, rng) for captions in self._captions]
        order = rng.permutation(len(drawn))
        size = _POOL * self._images
        batches: list[np.ndarray] = []
        for start in range(0, len(order), size):
            pool = order[start : start + size]
            pool = pool[np.argsort([sum(map(len, drawn[i])) for i in pool], kind="stable")]
            batches += [pool[i : i + self._images] for i in range(0, len(pool), self._images)]
        for i in rng.permutation(len(batches)):
            rows = torch.tensor([self._rows[image] for image in batches[i]])
            yield CaptionBatch.from_ids(rows, [drawn[image] for image in batches[i]], self._vocabulary)

    def _draw(self, captions: list[list[int]], rng: np.random.Generator) -> list[list[int]]:
        count = self._per_image
        if len(captions) > count:
            captions = [captions[i] for i in rng.choice(len(captions), count, replace=False)]
        return sorted((captions[i % len(captions)] for i in range(count)), key=len, reverse=True)
