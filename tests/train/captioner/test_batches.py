"""Batches of captions: every caption once an epoch, padded and ordered as the unrolled loss expects."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import Shapes
from train.captioner.batches import CaptionBatches


class Captions:
    """Row r has r % 4 + 1 references of different lengths, each naming its row and number."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def references(self, row: int) -> list[list[str]]:
        return [[f"r{row}", f"k{k}", *["word"] * (3 * (row + k) % 7)] for k in range(row % 4 + 1)]


ROWS = 23
DATASET = Captions(ROWS)
VOCABULARY = Vocabulary.from_captions(reference for row in range(ROWS) for reference in DATASET.references(row))


def make_batches(images: int = 5, captions: int = 4, max_length: int = 20, rows: range = range(ROWS)) -> CaptionBatches:
    return CaptionBatches(VOCABULARY, rows, DATASET.references, images, captions, max_length)


def epoch(batches: CaptionBatches, seed: int = 0) -> list:
    return list(batches.epoch(np.random.default_rng(seed)))


def captions_of(batches) -> Counter:
    """(row, words) of every caption, and checks of the padding on the way."""
    counts = Counter()
    for batch in batches:
        assert batch.tokens.dtype == batch.lengths.dtype == batch.rows.dtype == torch.int64
        assert batch.tokens.shape == (*batch.lengths.shape, int(batch.lengths.max()) + 1)
        for n, row in enumerate(batch.rows.tolist()):
            for tokens, length in zip(batch.tokens[n].tolist(), batch.lengths[n].tolist(), strict=True):
                assert tokens[0] == VOCABULARY.start
                assert set(tokens[length + 1 :]) <= {VOCABULARY.pad}
                assert VOCABULARY.pad not in tokens[: length + 1]
                counts[row, tuple(VOCABULARY.decode(tokens[1 : length + 1]))] += 1
    return counts


@pytest.mark.parametrize("images", [1, 5, 23, 50])
def test_every_image_once_an_epoch_and_every_caption_of_those_that_have_few(images):
    batches = make_batches(images)
    batches_of_epoch = epoch(batches)
    assert len(batches_of_epoch) == len(batches)
    assert all(len(batch.rows) <= images for batch in batches_of_epoch)
    assert sorted(torch.cat([batch.rows for batch in batches_of_epoch]).tolist()) == list(range(ROWS))
    expected = Counter()
    for row in range(ROWS):
        references = DATASET.references(row)
        for k in range(4):  # fewer than four are repeated
            expected[row, (*references[k % len(references)], "<end>")] += 1
    assert captions_of(batches_of_epoch) == expected


def test_of_more_captions_some_are_drawn_without_repeats_and_anew_each_epoch():
    batches = make_batches(captions=2)
    drawn = {row: set() for row in range(ROWS)}
    for seed in range(30):
        counts = captions_of(epoch(batches, seed))
        for (row, words), count in counts.items():
            assert list(words[:-1]) in DATASET.references(row)
            assert count == 1 or len(DATASET.references(row)) == 1
            drawn[row].add(words)
    assert all(len(captions) == len(DATASET.references(row)) for row, captions in drawn.items())


def test_lengths_fall_along_the_captions_of_an_image():
    for batch in epoch(make_batches()):
        assert (batch.lengths.diff(dim=1) <= 0).all()


def test_images_of_like_lengths_share_a_batch():
    batches = make_batches(images=4)
    words = dict.fromkeys(range(ROWS), 0)
    for (row, caption), count in captions_of(epoch(batches)).items():
        words[row] += count * len(caption)
    spans = sorted((min(totals), max(totals)) for totals in _totals(epoch(batches), words))
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(spans))  # one pool: no overlap


def _totals(batches_of_epoch, words):
    return [[words[row] for row in batch.rows.tolist()] for batch in batches_of_epoch]


def test_the_order_follows_from_the_generator():
    batches = make_batches(captions=2)
    first, again, different = epoch(batches, 7), epoch(batches, 7), epoch(batches, 8)
    for batch, repeated in zip(first, again, strict=True):
        assert all(map(torch.equal, batch, repeated))
    assert [batch.rows.tolist() for batch in first] != [batch.rows.tolist() for batch in different]


def test_long_captions_are_cut_and_have_no_end():
    longest = 0
    for (row, words), _ in captions_of(epoch(make_batches(max_length=5))).items():
        full = next([*reference, "<end>"] for reference in DATASET.references(row) if reference[:2] == list(words[:2]))
        assert list(words) == full[:5]
        longest = max(longest, len(full))
    assert longest > 5


def test_rows_may_be_a_part_of_the_split():
    rows = range(3, 17, 2)
    assert sorted(torch.cat([batch.rows for batch in epoch(make_batches(rows=rows))]).tolist()) == list(rows)


def test_words_outside_the_vocabulary_are_unknown():
    small = Vocabulary(["there", "is"])
    batch = next(CaptionBatches(small, range(4), Shapes("val").references, 4).epoch(np.random.default_rng(0)))
    inside = batch.tokens[..., 1:][torch.arange(batch.tokens.shape[2] - 1) < batch.lengths.unsqueeze(-1)]
    assert set(inside.tolist()) == {small.end, small.unk, *small.encode(["there", "is"])}


def test_part_and_repeat():
    batch = epoch(make_batches(images=ROWS))[0]
    order = batch.lengths.amax(1).argsort()
    short = batch._replace(rows=batch.rows[order], tokens=batch.tokens[order], lengths=batch.lengths[order])
    subset = short.subset(slice(0, None, 2))
    assert torch.equal(subset.rows, short.rows[::2])
    assert captions_of([subset]) == captions_of([short]) - captions_of([short.subset(slice(1, None, 2))])
    first = short.subset(slice(0, 3))
    assert first.tokens.shape[2] == int(first.lengths.max()) + 1 < short.tokens.shape[2]
    twice = batch.repeat(2)
    assert twice.tokens.shape[:2] == (ROWS, 8)
    for k in range(4):
        for copy in (2 * k, 2 * k + 1):
            assert torch.equal(twice.tokens[:, copy], batch.tokens[:, k])
            assert torch.equal(twice.lengths[:, copy], batch.lengths[:, k])
    assert torch.equal(twice.rows, batch.rows)
