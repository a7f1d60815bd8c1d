"""Karpathy's split files of Flickr8k, Flickr30k and COCO, on generated photos."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from glimpse_env.core.vocabulary import tokenize
from glimpse_env.datasets.base import CaptionDataset, DataError
from glimpse_env.datasets.photos.karpathy import Karpathy

CAPTIONS = ["A man , a plan .", "The dog's T-shirt !"]


def entry(filename: str, split: str, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": raw, "tokens": ["not", "used"]} for raw in CAPTIONS]
    return {"filename": filename, "split": split, "imgid": 0, "sentences": sentences, **more}


def narrow(row: int) -> Image.Image:
    """A photo that is known by its width."""
    return Image.new("L", (row + 1, 5))


def write(
    root: Path,
    name: str,
    folder: str,
    images: list[dict[str, Any]],
    photo: Callable[[int], Image.Image] = narrow,
) -> Path:
    """A dataset ``name`` with one photo for each entry, in ``folder`` or the entry's ``filepath``."""
    for row, image in enumerate(images):
        path = root / image.get("filepath", folder) / image["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(row).save(path)
    path = root / f"dataset_{name}.json"
    path.write_text(json.dumps({"images": images, "dataset": name}, indent=0), "utf-8")
    return path


def ids(dataset: CaptionDataset) -> list[str]:
    return [dataset.image_id(row) for row in range(len(dataset))]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *(("flickr8k", folder) for folder in ("Images", "Flicker8k_Dataset", "flickr8k-images", ".")),
        *(("flickr30k", folder) for folder in ("flickr30k-images", "flickr30k_images", "Images")),
    ],
)
def test_splits_rows_and_words(tmp_path: Path, name: str, folder: str) -> None:
    write(tmp_path, name, folder, [entry("b.jpg", "train"), entry("c.jpg", "val"), entry("a.JPEG", "train")])
    dataset = Karpathy.open(name, "train", str(tmp_path))
    assert isinstance(dataset, CaptionDataset)
    assert (dataset.name, dataset.split, ids(dataset)) == (name, "train", ["b.jpg", "a.JPEG"])
    assert dataset.references(1) == [tokenize(caption) for caption in CAPTIONS]
    assert (dataset.image(1).size, dataset.image(1).mode) == ((3, 5), "RGB")
    assert ids(Karpathy.open(name, "val", tmp_path)) == ["c.jpg"]


def test_coco_photos_are_in_their_filepath_and_restval_is_train(tmp_path: Path) -> None:
    images = [
        entry("COCO_val2014_1.jpg", "restval", filepath="val2014"),
        entry("COCO_val2014_2.jpg", "val", filepath="val2014"),
        entry("COCO_train2014_3.jpg", "train", filepath="train2014"),
        entry("COCO_val2014_4.jpg", "test", filepath="val2014"),
    ]
    write(tmp_path, "coco", ".", images)
    train = Karpathy.open("coco", "train", tmp_path)
    assert ids(train) == ["COCO_val2014_1.jpg", "COCO_train2014_3.jpg"]
    assert [train.image(row).width for row in range(2)] == [1, 3]
    assert ids(Karpathy.open("coco", "val", tmp_path)) == ["COCO_val2014_2.jpg"]
    assert ids(Karpathy.open("coco", "test", tmp_path)) == ["COCO_val2014_4.jpg"]


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown dataset 'flickr9k'; expected one of flickr8k, flickr30k, coco"):
        Karpathy.open("flickr9k", "train", tmp_path)
    with pytest.raises(ValueError, match="unknown split 'restval'"):
        Karpathy.open("coco", "restval", tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data folder '.*nowhere'"):
        Karpathy.open("coco", "train", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no COCO captions under .*dataset_coco\.json .*\$GLIMPSE_DATA"):
        Karpathy.open("coco", "train", tmp_path)
    for name, more, expected in (
        ("flickr30k", {}, "flickr30k-images/"),
        ("coco", {"filepath": "train2014"}, "train2014/"),
    ):
        content = {"images": [entry("a.jpg", "train", **more)]}
        (tmp_path / f"dataset_{name}.json").write_text(json.dumps(content))
        with pytest.raises(FileNotFoundError, match=rf"no \w+ images under .*expected {expected}\*\.jpg"):
            Karpathy.open(name, "train", tmp_path)


def test_missing_photo_is_named_and_only_its_own_split_fails(tmp_path: Path) -> None:
    write(tmp_path, "flickr8k", "Images", [entry("a.jpg", "train"), entry("b.jpg", "train"), entry("c.jpg", "val")])
    (tmp_path / "Images" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"dataset_flickr8k\.json, images\[1\] .*'b\.jpg' is not in .*Images"):
        Karpathy.open("flickr8k", "train", tmp_path)
    assert len(Karpathy.open("flickr8k", "val", tmp_path)) == 1


def test_split_without_images(tmp_path: Path) -> None:
    write(tmp_path, "flickr8k", "Images", [entry("a.jpg", "train")])
    with pytest.raises(DataError, match=r"dataset_flickr8k\.json names no image of the test split"):
        Karpathy.open("flickr8k", "test", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": None}, r"images\[1\] has no 'filename' of type str"),
        ({"filename": "../b.jpg"}, r"images\[1\] .*'filename' is not the name of an image"),
        ({"filename": "a.jpg"}, r"images\[1\] \('a\.jpg'\) stands already at images\[0\]"),
        ({"split": None}, r"images\[1\] \('b\.jpg'\) has no 'split' of type str"),
        ({"split": "dev"}, r"images\[1\] \('b\.jpg'\): unknown split 'dev'"),
        ({"sentences": None}, r"images\[1\] \('b\.jpg'\) has no 'sentences' of type list"),
        ({"sentences": []}, r"images\[1\] \('b\.jpg'\) has no captions"),
        ({"sentences": [{"raw": "a dog"}, {"tokens": []}]}, r"images\[1\] .*sentences\[1\] has no 'raw' of type str"),
        ({"sentences": [{"raw": " ?"}]}, r"images\[1\] .*sentences\[0\]: the caption '\?' has no words"),
        ({"sentences": ["a dog"]}, r"images\[1\] .*sentences\[0\] has no 'raw' of type str"),
        ({"filepath": 3}, r"images\[1\] \('b\.jpg'\) has no 'filepath' of type str"),
    ],
)
def test_bad_entry_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, "flickr8k", "Images", [entry("a.jpg", "train"), entry("b.jpg", "train")])
    content = json.loads(path.read_text("utf-8"))
    content["images"][1].update(change)
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(DataError, match=rf"dataset_flickr8k\.json, {message}"):
        Karpathy.open("flickr8k", "train", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"images":\n [{"filename": "a.jpg",\n  "split" "train"}]}', r", line 3, column 11: broken JSON"),
        (b'{"images": [\n', r", line 2, column 1: broken JSON"),
        (b"", r", line 1, column 1: broken JSON"),
        (b'{"images":\n ["\xff"]}', r", line 2: byte 0xff is not UTF-8"),
        (b"[]", r" has no 'images' of type list"),
        (b'{"images": 3}', r" has no 'images' of type list"),
        (b'{"images": [[]]}', r", images\[0\] is not a JSON object"),
    ],
)
def test_broken_file(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "dataset_flickr30k.json").write_bytes(text)
    with pytest.raises(DataError, match=rf"dataset_flickr30k\.json{message}"):
        Karpathy.open("flickr30k", "train", tmp_path)


def test_byte_order_mark_is_fine(tmp_path: Path) -> None:
    path = write(tmp_path, "flickr8k", "Images", [entry("a.jpg", "test")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(Karpathy.open("flickr8k", "test", tmp_path)) == 1
