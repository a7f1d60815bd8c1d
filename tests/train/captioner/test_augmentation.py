"""Mirrored photographs: the same rows flipped, another key, and none whose captions tell left from right."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from glimpse_env.datasets import CaptionDataset
from glimpse_env.datasets.photos.files import Photograph, PhotographDataset
from train.captioner.augmentation import Mirrored, has_sides


@pytest.fixture
def dataset(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    captions = [["a", "dog", "on", "the", "left"], ["a", "dog"]], [["a", "leftover", "cat"]]
    photographs = [Photograph(f"{n}.png", tmp_path / "one.png", refs) for n, refs in enumerate(captions)]
    return PhotographDataset("flickr8k", "train", photographs, tmp_path)


def test_images_are_flipped_and_nothing_else(dataset):
    mirrored = Mirrored(dataset)
    assert isinstance(mirrored, CaptionDataset)
    assert len(mirrored) == len(dataset)
    for row in range(len(dataset)):
        assert np.array_equal(np.asarray(mirrored.image(row)), np.asarray(dataset.image(row))[:, ::-1])
        assert mirrored.image_id(row) == dataset.image_id(row)
        assert mirrored.references(row) == dataset.references(row)
    assert mirrored.fingerprint() != dataset.fingerprint()  # or one table would be read for the other


def test_captions_that_tell_left_from_right_are_found(dataset):
    assert has_sides(dataset, 0)
    assert not has_sides(dataset, 1)
