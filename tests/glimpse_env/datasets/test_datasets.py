"""Datasets by name, and their data folders."""

from __future__ import annotations

import pytest

from glimpse_env.datasets import CaptionDataset, find_world, make_dataset
from glimpse_env.datasets.base import SPLITS, check_split
from tests.conftest import IDS, SHAPES_CONFIGS
from tests.glimpse_env.datasets.test_karpathy import entry
from tests.glimpse_env.datasets.test_karpathy import write as write_json
from tests.glimpse_env.datasets.test_webdataset import sample
from tests.glimpse_env.datasets.test_webdataset import write as write_tar


def write_webdataset(root):
    """One photograph a split in tar shards, captioned with the split's name."""
    for split in SPLITS:
        write_tar(root / f"{split}-0.tar", sample(split, captions=f"A {split} photo of webdataset.".encode()))


def write_karpathy(root, name, folder=""):
    """The same in Karpathy's layout."""
    captions = {split: [{"raw": f"A {split} photo of {name}."}] for split in SPLITS}
    images = [entry(f"{split}.jpg", split, sentences=captions[split], filepath=folder) for split in SPLITS]
    write_json(root, name, folder, images)


@pytest.fixture(autouse=True)
def without_variable(monkeypatch):
    monkeypatch.delenv("GLIMPSE_DATA", raising=False)


PHOTOGRAPHS = [name for name in IDS.values() if name not in SHAPES_CONFIGS]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", SHAPES_CONFIGS)
def test_worlds_need_no_folder(name, split):
    dataset = make_dataset(name, split, "/does/not/exist")
    assert isinstance(dataset, CaptionDataset)
    assert (dataset.name, dataset.split, dataset.procedural) == (name, split, True)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("source", ["folder", "parent", "variable", "text"])
def test_a_folder_is_found(tmp_path, monkeypatch, name, split, source):
    folder = "" if name == "coco" else "Images"
    root = tmp_path / name
    write_webdataset(root) if name == "webdataset" else write_karpathy(root, name, folder)
    if source == "variable":
        monkeypatch.setenv("GLIMPSE_DATA", str(tmp_path))
    where = {"folder": root, "parent": tmp_path, "variable": None, "text": str(root)}[source]
    dataset = make_dataset(name, split, where)
    assert isinstance(dataset, CaptionDataset)
    assert (dataset.name, dataset.split, dataset.procedural, len(dataset)) == (name, split, False, 1)
    assert dataset.references(0) == [["a", split, "photo", "of", name]]


def test_the_argument_takes_precedence_over_the_variable(tmp_path, monkeypatch):
    write_karpathy(tmp_path / "one" / "coco", "coco")
    monkeypatch.setenv("GLIMPSE_DATA", str(tmp_path / "nothing"))
    assert len(make_dataset("coco", "val", tmp_path / "one")) == 1
    with pytest.raises(FileNotFoundError, match=r"no data folder '.*nothing'"):
        make_dataset("coco", "val")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    write_karpathy(tmp_path / "coco", "coco")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(make_dataset("coco", "val", "~/coco")) == 1


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_without_a_folder_the_message_says_what_to_do(monkeypatch, name):
    with pytest.raises(FileNotFoundError, match=rf"{name} is not part of this package.*data_root=.*GLIMPSE_DATA"):
        make_dataset(name, "val")
    monkeypatch.setenv("GLIMPSE_DATA", "")
    with pytest.raises(FileNotFoundError, match=rf"{name} is not part of this package"):
        make_dataset(name, "val")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_an_empty_folder_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        make_dataset(name, "val", tmp_path)


def test_unknown_names():
    with pytest.raises(
        ValueError,
        match="unknown dataset 'flickr'; expected one of shapes, shapes-large, flickr8k, flickr30k, coco, webdataset",
    ):
        make_dataset("flickr", "val")
    with pytest.raises(ValueError, match="unknown split 'dev'; expected one of train, val, test"):
        make_dataset("shapes", "dev")
    assert [check_split(split) for split in SPLITS] == ["train", "val", "test"]


@pytest.mark.parametrize("name", IDS.values())
def test_the_longest_caption_of_a_world_just_fits(name):
    if name not in SHAPES_CONFIGS:
        assert find_world(name).longest == 20
        return
    dataset = make_dataset(name, "val")
    longest = max(len(reference) for row in range(40) for reference in dataset.references(row))
    assert find_world(name).longest == longest + 1  # <end>
