"""What the tests of all commands share."""

from __future__ import annotations

import pytest

from glimpse_env.datasets.shapes import LARGE, SMALL
from train.captioner import model


@pytest.fixture(scope="session", autouse=True)
def words_of_scenes_are_counted_once():
    """A process counts the words of tens of thousands of scenes, which takes seconds, once for all its tests."""
    read, known = model.read_vocabulary, {}

    def read_once(dataset, min_count):
        if dataset.name not in (SMALL.name, LARGE.name):
            return read(dataset, min_count)
        if (dataset.name, min_count) not in known:
            known[dataset.name, min_count] = read(dataset, min_count)
        return known[dataset.name, min_count]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "read_vocabulary", read_once)
        yield
