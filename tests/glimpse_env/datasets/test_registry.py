"""Registration of worlds, and the masks of their locations."""

from __future__ import annotations

import numpy as np
import pytest

from glimpse_env import DataError, DatasetSpec, LocationGrid, register_world
from glimpse_env.datasets import WORLDS, GroundedDataset, MaskedDataset, find_world, make_dataset, registry
from glimpse_env.datasets.base import location_masks
from glimpse_env.datasets.registry import world_of
from tests.toy_world import CELLS, GROUNDED, STRIPS, Strips, spec
from train.common.cli import is_user_error


def test_a_world_is_registered_once():
    register_world(STRIPS)  # the same again does nothing
    with pytest.raises(ValueError, match=r"name 'toy-strips' is registered already"):
        register_world(spec(Strips, "Glimpse/Other-v0"))
    with pytest.raises(ValueError, match=r"env_id 'Glimpse/ToyStrips-v0' is registered already"):
        register_world(spec(Strips, STRIPS.env_id, name="other"))


def test_a_spec_without_what_it_needs_is_refused():
    with pytest.raises(ValueError, match=r"world '' needs name=, such as 'shapes-large'"):
        DatasetSpec()
    with pytest.raises(ValueError, match=r"world 'toy' needs env_id=, such as 'Glimpse/Toy-v0', got ''"):
        DatasetSpec(name="toy")
    with pytest.raises(ValueError, match=r"'toy-strips' needs env_id=, such as"):
        spec(Strips, None)
    with pytest.raises(ValueError, match=r"needs open=, a function of split and data folder, got None"):
        DatasetSpec("toy", "Glimpse/Toy-v0")
    with pytest.raises(ValueError, match=r"needs grid= and image_size="):
        spec(Strips, "Glimpse/Other-v0", grid=None)
    with pytest.raises(ValueError, match=r"16 x 160 px, which do not divide into its grid of 7 tiles"):
        spec(Strips, "Glimpse/Other-v0", grid=LocationGrid((7,)))
    with pytest.raises(ValueError, match=r"needs open="):
        DatasetSpec("toy", "Glimpse/Toy-v0", None)
    with pytest.raises(TypeError, match="DatasetSpec"):
        register_world({"name": "toy"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Toy Strips"}, r"world 'Toy Strips' needs name=, such as 'shapes-large', got 'Toy Strips'"),
        ({"name": None}, r"needs name=, such as 'shapes-large', got None"),
        ({"env_id": "Glimpse/Toy"}, r"needs env_id=, such as 'Glimpse/Toy-v0', got 'Glimpse/Toy'"),
        ({"env_id": "toy:Toy-v0"}, r"needs env_id=, such as 'Glimpse/Toy-v0', got 'toy:Toy-v0'"),
        ({"grid": (10,)}, r"world 'toy-strips' needs grid=, a LocationGrid, got \(10,\)"),
        ({"grid": LocationGrid((2, 2, 5))}, r"encoder 'tile' needs grid= and image_size= and reads no frames"),
        ({"image_size": 16}, r"needs image_size=, height and width in pixels, got 16"),
        ({"image_size": (16,)}, r"needs image_size="),
        ({"image_size": (0, 0)}, r"needs image_size="),
        ({"image_size": (-16, -160)}, r"needs image_size="),
        ({"image_size": (16.0, 160.0)}, r"needs image_size="),
        ({"encoder": None}, r"needs encoder=, the name of a backbone, got None"),
        ({"recipe": "nope"}, r"needs recipe=, 'scenes' or 'photographs', got 'nope'"),
        ({"hyperparameters": None}, r"needs hyperparameters=, a dict"),
        ({"report_split": "dev"}, r"needs report_split=, one of train, val, test, got 'dev'"),
        ({"blank": "x"}, r"needs blank=, a bool, got 'x'"),
        ({"metrics": ("bleu", "bleu")}, r"needs metrics=, a tuple of different names, got \('bleu', 'bleu'\)"),
        ({"metrics": ["bleu"]}, r"needs metrics="),
        ({"image_size": None}, r"needs grid= and image_size="),
        ({"image_size": (16, 163)}, r"16 x 163 px, which do not divide"),
        ({"metrics": ()}, r"needs metrics="),
        ({"metrics": "bleu"}, r"needs metrics=, a tuple"),
        ({"longest": 0}, r"longest of world 'toy-strips'"),
    ],
)
def test_a_wrong_field_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(Strips, **{"env_id": STRIPS.env_id, **changes})


def test_a_spec_is_a_key():
    assert len({STRIPS, STRIPS, GROUNDED}) == 2


def test_a_world_of_another_module_is_imported_by_name(tmp_path, monkeypatch):
    assert find_world("tests.toy_world:toy-strips") is WORLDS["toy-strips"] is STRIPS
    assert world_of("tests.toy_world:Glimpse/ToyStrips-v0") is STRIPS
    with pytest.raises(ImportError, match=r"no module 'no.such' of dataset 'toy-strips'; run from the folder") as no:
        find_world("no.such:toy-strips")
    assert is_user_error(no.value)
    (tmp_path / "toy_broken.py").write_text("import no.such")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="No module named 'no'") as broken:
        find_world("toy_broken:toy-strips")
    assert not is_user_error(broken.value)  # its traceback is shown
    with pytest.raises(ValueError, match="unknown dataset 'other'; expected one of shapes,"):
        find_world("tests.toy_world:other")


def test_what_a_dataset_knows_is_seen_from_its_methods():
    strips, grounded = make_dataset(STRIPS.name, "val"), make_dataset(GROUNDED.name, "val")
    assert isinstance(strips, MaskedDataset)
    assert not isinstance(strips, GroundedDataset)
    assert isinstance(grounded, GroundedDataset)
    assert not isinstance(make_dataset("shapes", "val"), MaskedDataset)


def test_masks_are_of_every_row():
    strips = make_dataset(STRIPS.name, "val")
    masks = location_masks(strips, CELLS)
    assert masks.dtype == bool
    assert masks.shape == (len(strips), CELLS)
    for row, mask in enumerate(masks):
        assert mask.tolist() == strips.location_mask(row).tolist()
    assert location_masks(make_dataset("shapes", "val"), 49) is None


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(CELLS, bool), r"'strip-val-0' has no location to look at: its location mask is empty; leave the row"),
        (np.ones(CELLS, np.int64), r"'strip-val-0' is int64 of shape \(10,\).*expected bool of shape \(10,\)"),
        (np.ones(CELLS + 1, bool), r"'strip-val-0' is bool of shape \(11,\); the encoder makes 10 locations"),
    ],
)
def test_a_wrong_mask_is_named(monkeypatch, mask, message):
    monkeypatch.setattr(Strips, "location_mask", lambda self, row: mask)
    with pytest.raises(DataError, match=message):
        location_masks(make_dataset(STRIPS.name, "val"), CELLS)


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (lambda split: None, r"None, expected a CaptionDataset whose name and split are \('toy-open', 'val'\)"),
        (lambda split: object(), r"<object .*, expected a CaptionDataset"),
        (Strips, r"\('toy-strips', 'val'\), expected a CaptionDataset whose name and split are \('toy-open', 'val'\)"),
        (lambda split: type("Open", (Strips,), {"name": "toy-open"})("train"), r"\('toy-open', 'train'\), expected"),
    ],
)
def test_what_open_returns_is_of_its_world(opened, message, monkeypatch):
    world = spec(Strips, "Glimpse/ToyOpen-v0", name="toy-open", open=lambda split, root: opened(split))
    monkeypatch.setitem(registry._WORLDS, "toy-open", world)
    with pytest.raises(ValueError, match=r"open= of world 'toy-open' returned " + message):
        make_dataset("toy-open", "val")


def test_a_grounded_world_has_ground_truth():
    class Promised(Strips):
        name = "toy-promised"

    register_world(spec(Promised, "Glimpse/ToyPromised-v0", grounded=True))
    with pytest.raises(ValueError, match=r"'toy-promised' is grounded=True, but Promised lacks a part of Grounded"):
        make_dataset("toy-promised", "train")
