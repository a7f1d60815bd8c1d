"""Datasets by name, and where their folders are looked for."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from PIL import Image

from glimpse_env.datasets import DATASETS, SPLITS, WORLDS, CaptionDataset, longest_caption, make_dataset
from glimpse_env.datasets.base import check_split


def write_webdataset(root):
    """The same in tar shards."""
    root.mkdir()
    photo = io.BytesIO()
    Image.new("RGB", (8, 6)).save(photo, "jpeg")
    for split in SPLITS:
        with tarfile.open(root / f"{split}-0.tar", "w") as tar:
            for kind, content in (("jpg", photo.getvalue()), ("txt", f"A {split} photo of webdataset.".encode())):
                member = tarfile.TarInfo(f"{split}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return root


def write_karpathy(root, name, folder=""):
    """One photograph a split, captioned with the split's name."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    images = []
    for split in SPLITS:
        Image.new("RGB", (8, 6)).save(root / folder / f"{split}.jpg")
        sentences = [{"raw": f"A {split} photo of {name}."}]
        images.append({"filename": f"{split}.jpg", "split": split, "filepath": folder, "sentences": sentences})
    (root / f"dataset_{name}.json").write_text(json.dumps({"images": images}))
    return root


@pytest.fixture(autouse=True)
def without_variable(monkeypatch):
    monkeypatch.delenv("GLIMPSE_DATA", raising=False)


PHOTOGRAPHS = [name for name in DATASETS if name not in WORLDS]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", WORLDS)
def test_worlds_need_no_folder(name, split):
    dataset = make_dataset(name, split, "/does/not/exist")
    assert isinstance(dataset, CaptionDataset)
    assert (dataset.name, dataset.split, dataset.procedural) == (name, split, True)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("given", ["folder", "parent", "variable", "text"])
def test_a_folder_is_found(tmp_path, monkeypatch, name, split, given):
    folder = "" if name == "coco" else "Images"
    root = tmp_path / name
    write_webdataset(root) if name == "webdataset" else write_karpathy(root, name, folder)
    if given == "variable":
        monkeypatch.setenv("GLIMPSE_DATA", str(tmp_path))
    where = {"folder": root, "parent": tmp_path, "variable": None, "text": str(root)}[given]
    dataset = make_dataset(name, split, where)
    assert isinstance(dataset, CaptionDataset)
    assert (dataset.name, dataset.split, dataset.procedural, len(dataset)) == (name, split, False, 1)
    assert dataset.references(0) == [["a", split, "photo", "of", name]]


def test_what_is_given_goes_before_the_variable(tmp_path, monkeypatch):
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


@pytest.mark.parametrize("name", DATASETS)
def test_the_longest_caption_of_a_world_just_fits(name):
    if name not in WORLDS:
        assert longest_caption(name) == 20
        return
    dataset = make_dataset(name, "val")
    longest = max(len(reference) for row in range(40) for reference in dataset.references(row))
    assert longest_caption(name) == longest + 1  # <end>
