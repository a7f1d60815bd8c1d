"""Photographs as people have them: every kind but the one that is cut off is read and shows what it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glimpse_env.datasets import Shapes
from glimpse_env.datasets.base import DataError
from glimpse_env.datasets.photos.files import read_photograph
from train.caption import runner as caption
from train.mixed import KINDS, TWENTY_MEGAPIXELS, Options, main

COUNT = len(KINDS) + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mixed") / "photos"
    main(Options(dataset="shapes", count=COUNT, out=out))
    return out


def test_every_kind_shows_its_image_upright(folder):
    files = sorted(folder.iterdir())
    assert [path.name[4:] for path in files[: len(KINDS)]] == [*KINDS]
    for row, path in enumerate(files[: len(KINDS)]):
        photo = read_photograph(path)
        original = Shapes("val").image(row).resize(photo.size)
        actual, expected = (
            np.asarray(picture.convert("L").resize((14, 14), Image.Resampling.BOX), float)
            for picture in (photo, original)
        )
        if "fading" in path.name:  # on white
            expected = 255 + (expected - 255) * (1 - (np.arange(14) + 0.5) / 14)
        assert np.corrcoef(actual.ravel(), expected.ravel())[0, 1] > 0.8, path.name
        assert np.abs(actual - expected).mean() < 3, path.name


def test_sizes_differ_and_three_are_special(folder):
    *plain, dot, large, cut = sorted(folder.iterdir())
    sizes = [Image.open(path).size for path in plain]
    assert len(set(sizes)) > COUNT / 2
    assert Image.open(dot).size == (1, 1)
    assert Image.open(large).size == TWENTY_MEGAPIXELS
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_photograph(cut)


def test_all_but_the_one_that_is_cut_off_are_captioned(folder, captioner_file, attention_file, tmp_path):
    named = {"captioner": str(captioner_file), "attention": attention_file, "out": tmp_path / "out"}
    with pytest.raises(SystemExit, match=rf"1 of {COUNT} photographs could not be read and were skipped: .*cut-off"):
        caption.main(caption.Options(photos=[folder], **named))
    pictures = [path.stem for path in (tmp_path / "out").glob("*.png")]
    assert sorted(pictures) == [path.stem for path in sorted(folder.iterdir())[:-1]]


def test_a_folder_that_is_there_is_left_alone_and_too_few_are_refused(folder, tmp_path):
    with pytest.raises(FileExistsError):
        main(Options(dataset="shapes", count=COUNT, out=folder))
    with pytest.raises(ValueError, match="count must lie between 3 and the 1000 images of the split, got 2"):
        main(Options(dataset="shapes", count=2, out=tmp_path / "few"))
    assert not (tmp_path / "few").exists()
