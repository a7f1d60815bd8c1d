"""Tar shards of photographs: read in place, never unpacked, and malformed ones are named."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from glimpse_env.datasets import CaptionDataset, DataError, make_dataset
from glimpse_env.datasets.photos.webdataset import LARGEST_IMAGE, LARGEST_TEXT, WebDataset


def photo(seed, kind="png", size=(12, 9)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(path, members):
    """A tar of members: names, and bytes, or headers of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def sample(key, seed=0, captions=b"A dog.\n"):
    return [(f"{key}.png", photo(seed)), (f"{key}.txt", captions)]


def test_rows_are_in_the_order_of_the_shards(tmp_path):
    write(tmp_path / "train-1.tar", [*sample("z", 1), *sample("b", 2)])
    write(tmp_path / "train-0.tar", sample("q", 3))
    dataset = WebDataset.open("train", tmp_path)
    assert isinstance(dataset, CaptionDataset)
    assert not dataset.procedural
    assert [dataset.image_id(row) for row in range(len(dataset))] == ["q", "z", "b"]
    for row, seed in enumerate((3, 1, 2)):
        image = dataset.image(row)
        assert (image.mode, image.size) == ("RGB", (12, 9))
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(photo(seed)))))


def test_shards_are_read_once_while_they_are_unchanged(tmp_path):
    shard = write(tmp_path / "train.tar", sample("a"))
    dataset = WebDataset.open("train", tmp_path)
    assert WebDataset.open("train", str(tmp_path)) is dataset
    write(shard, [*sample("a"), *sample("b")])
    reopened = WebDataset.open("train", tmp_path)
    assert (len(dataset), len(reopened)) == (1, 2)
    write(tmp_path / "train-1.tar", sample("c"))
    assert len(WebDataset.open("train", tmp_path)) == 3


def test_captions_are_lines_of_a_text_or_of_a_json(tmp_path):
    write(
        tmp_path / "train.tar",
        [
            *sample("a", 1, "\ufeffA dog runs.\r\n\nTwo dogs, running\n".encode()),
            ("b/c.json", json.dumps({"captions": ["A cat!", "the cat sits"], "url": "u"}).encode()),
            ("b/c.JPG", photo(3, "jpeg")),
            ("b/c.cls", b"7"),
            ("d.webp", photo(4, "webp")),
            ("d.json", b'{"caption": "one bird"}'),
            ("e.png", photo(5)),
            ("e.json", b'{"caption": "not this"}'),
            ("e.txt", b"but this"),
            ("README", b"no key"),
            ("._e.jpg", b"no key"),
        ],
    )
    dataset = make_dataset("webdataset", "train", tmp_path)
    assert [dataset.image_id(row) for row in range(len(dataset))] == ["a", "b/c", "d", "e"]
    assert dataset.references(0) == [["a", "dog", "runs"], ["two", "dogs", "running"]]
    assert [dataset.references(row) for row in (1, 2, 3)] == [
        [["a", "cat"], ["the", "cat", "sits"]],
        [["one", "bird"]],
        [["but", "this"]],
    ]
    dataset.references(0)[0].append("mine")
    assert dataset.references(0)[0] == ["a", "dog", "runs"]
    assert dataset.image(1).size == dataset.image(2).size == (12, 9)


def test_a_split_is_a_folder_or_a_name(tmp_path):
    write(tmp_path / "webdataset" / "val" / "0001.tar", sample("inside"))
    write(tmp_path / "webdataset" / "test-a.tar", sample("beside"))
    assert make_dataset("webdataset", "val", tmp_path).image_id(0) == "inside"
    assert make_dataset("webdataset", "test", tmp_path).image_id(0) == "beside"
    with pytest.raises(
        FileNotFoundError, match=r"no shards of train under .*; expected train/\*\.tar or train-\*\.tar"
    ):
        make_dataset("webdataset", "train", tmp_path)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        WebDataset.open("dev", tmp_path)


def test_nothing_is_unpacked_and_names_are_only_keys(tmp_path):
    folder = tmp_path / "in" / "here"
    write(folder / "train.tar", [*sample("../../out"), *sample("/tmp/glimpse-absolute")])
    dataset = WebDataset.open("train", folder)
    for row in range(2):
        dataset.image(row)
    assert [dataset.image_id(row) for row in range(2)] == ["../../out", "/tmp/glimpse-absolute"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["train.tar"]


def test_another_shard_is_another_fingerprint(tmp_path):
    path = write(tmp_path / "train.tar", sample("a", 1))
    dataset = WebDataset.open("train", tmp_path)
    before = dataset.fingerprint()
    assert WebDataset.open("train", tmp_path).fingerprint() == before
    write(path, sample("a", 2))
    assert dataset.fingerprint() != before
    path.unlink()
    with pytest.raises(DataError, match=r"train\.tar is missing"):
        dataset.fingerprint()


def link(kind):
    member = tarfile.TarInfo("a.png")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


def of_size(name, size):
    """A header that claims a size, without what it claims."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf()


BAD = {
    "symbolic link": ([("", link(tarfile.SYMTYPE))], "'a.png' is a link or no plain file"),
    "hard link": ([("", link(tarfile.LNKTYPE))], "'a.png' is a link or no plain file"),
    "device": ([("", link(tarfile.CHRTYPE))], "'a.png' is a link or no plain file"),
    "no captions": (sample("a")[:1], r"'a' has no captions; add a\.txt or a\.json"),
    "no photograph": (sample("a")[1:], "'a' has captions and no photograph"),
    "two photographs": ([("a.jpg", photo(1, "jpeg")), *sample("a")], "'a' has two photographs"),
    "twice": ([*sample("a"), *sample("b"), *sample("a")], "members of 'a' stand in two places"),
    "apart": ([sample("a")[0], *sample("b"), sample("a")[1]], "'a' has no captions"),
    "blank": (sample("a", captions=b"\n \n"), "'a' has no captions; add some"),
    "no words": (sample("a", captions=b"...\n"), "'a': the caption '...' has no words"),
    "not UTF-8": (sample("a", captions=b"\xff\n"), "'a': its captions are not UTF-8"),
    "broken JSON": ([sample("a")[0], ("a.json", b'{"caption')], "'a': broken JSON"),
    "deep JSON": ([sample("a")[0], ("a.json", b"[" * 100_000)], "'a': broken JSON"),
    "other JSON": ([sample("a")[0], ("a.json", b'{"captions": [1]}')], "'a': its JSON has neither 'captions'"),
    "JSON list": ([sample("a")[0], ("a.json", b"[]")], "'a': its JSON has neither 'captions'"),
    "control characters": (sample("a\x1b[31m"), r"'a\\x1b\[31m' is no name"),
    "long captions": (sample("a", captions=b"a " * LARGEST_TEXT), "'a.txt' has .* bytes, too many"),
    "empty": ([], "hold no photograph"),
}


@pytest.mark.parametrize(("members", "message"), BAD.values(), ids=BAD)
def test_malformed_shards_are_named(tmp_path, members, message):
    write(tmp_path / "train.tar", members)
    with pytest.raises(DataError, match=rf"train\.tar.*{message}"):
        WebDataset.open("train", tmp_path)


def test_a_key_of_two_shards_is_named(tmp_path):
    for name in ("train-0.tar", "train-1.tar"):
        write(tmp_path / name, sample("a"))
    with pytest.raises(DataError, match=r"train-1\.tar: 'a' stands already in .*train-0\.tar"):
        WebDataset.open("train", tmp_path)


FIRST = tarfile.BLOCKSIZE * (1 - -len(photo(0)) // tarfile.BLOCKSIZE)  # bytes of the first member
SPOILED = {
    "cut in a header": lambda shard: shard[:300],
    "cut in a photograph": lambda shard: shard[:700],
    "cut between two members": lambda shard: shard[:FIRST],
    "cut at the end": lambda shard: shard[: FIRST + 2 * tarfile.BLOCKSIZE],
    "garbage after a member": lambda shard: shard[:FIRST] + b"garbage" * 1000,
    "compressed": gzip.compress,
    "huge": lambda shard: of_size("z.png", LARGEST_IMAGE + 1) + shard,
    "false size": lambda shard: of_size("z.png", LARGEST_IMAGE) + shard,
    "false size of captions": lambda shard: of_size("z.txt", LARGEST_TEXT) + shard,
    "nothing": lambda shard: b"",
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_spoiled_shards_are_named(tmp_path, spoil):
    path = write(tmp_path / "train.tar", sample("a"))
    assert len(WebDataset.open("train", tmp_path)) == 1
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{path}"):
        WebDataset.open("train", tmp_path)


def test_photographs_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    write(tmp_path / "train.tar", [("a.jpg", b"no image"), ("a.txt", b"a"), *sample("b", 1)])
    dataset = WebDataset.open("train", tmp_path)
    with pytest.raises(DataError, match=r"'a' in .*train\.tar cannot be read as an image"):
        dataset.image(0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 107)
    with pytest.raises(DataError, match=r"'b' in .*train\.tar cannot be read as an image \(12 x 9 pixels"):
        dataset.image(1)


def test_a_shard_that_is_cut_off_later_is_named(tmp_path):
    path = write(tmp_path / "train.tar", sample("a"))
    dataset = WebDataset.open("train", tmp_path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"'a' in .*train\.tar is cut off"):
        dataset.image(0)
    path.unlink()
    with pytest.raises(DataError, match=r"'a' in .*train\.tar cannot be read"):
        dataset.image(0)
