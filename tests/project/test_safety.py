"""Files of strangers: nothing in them is run, nothing is written where they say, and no size they claim is believed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import threading
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from agents.loading import find_agent
from glimpse_env.core.safetensors_files import FileFormatError, read_tensors
from glimpse_env.datasets import DataError, make_dataset
from glimpse_env.datasets.photos.files import read_photograph
from glimpse_env.datasets.photos.karpathy import Karpathy
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.features.build import open_features, table_path
from glimpse_env.models.captioner import load_captioner
from tests.fuzz.targets import CAPTIONER, ENTRY, FEW, NAME, TARGETS, begin_peak, peak
from train.caption.gallery import Gallery
from train.common.options import CommonOptions
from train.common.run_directory import RunDirectory


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def trapped(kind: str, sprung) -> bytes:
    """A pickle that springs, as it is or in each container that readers of pickles look into."""
    trap = Trap(sprung)
    file = io.BytesIO()
    if kind == "plain":
        return pickle.dumps(trap)
    if kind == "torch":
        torch.save({"format": "glimpse-captioner-1", "trap": trap}, file)
    elif kind == "legacy torch":
        torch.save([trap], file, _use_new_zipfile_serialization=False)
    elif kind == "npy":
        np.save(file, np.array([trap], object), allow_pickle=True)
    else:
        np.savez(file, features=np.array([trap], object))
    return file.getvalue()


TRAPS = ["plain", "torch", "legacy torch", "npy", "npz"]


@pytest.mark.parametrize("trap", TRAPS)
def test_the_traps_spring_where_pickles_are_loaded(tmp_path, trap):
    sprung, path = tmp_path / "sprung", tmp_path / "trap"
    path.write_bytes(trapped(trap, sprung))
    if trap == "plain":
        pickle.loads(path.read_bytes())
    elif "torch" in trap:
        torch.load(path, weights_only=False)
    else:
        loaded = np.load(path, allow_pickle=True)
        loaded = loaded["features"] if trap == "npz" else loaded
    assert sprung.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("kind", TARGETS)
def test_no_pickle_is_loaded_from_any_kind_of_file(tmp_path, kind, trap):
    sprung = tmp_path / "sprung"
    for place, name in enumerate(TARGETS[kind].seeds):
        folder = tmp_path / f"{place}"
        folder.mkdir()
        path = folder / name
        path.write_bytes(trapped(trap, sprung))
        with suppress(*TARGETS[kind].refused):  # a curve is none where its columns are missing
            TARGETS[kind].read(path)
        assert not sprung.exists()


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_among_the_features_of_shapes_is_written_over(tmp_path, trap):
    dataset = make_dataset("shapes", "val")
    sprung = tmp_path / "sprung"
    cache = tmp_path / "cache"
    path = table_path(dataset, CAPTIONER.encoder, cache)
    cache.mkdir()
    for file in (path, path.with_suffix(".sums.npy")):
        file.write_bytes(trapped(trap, sprung))
    features = open_features(dataset, CAPTIONER.encoder, folder=cache)
    assert np.array_equal(features[0], CAPTIONER.encoder.encode([dataset.image(0)])[0].half().numpy())
    assert not sprung.exists()


def test_no_pickle_is_loaded_from_a_checkpoint(tmp_path):
    sprung, folder = tmp_path / "sprung", tmp_path / "run"
    directory = RunDirectory(folder, CommonOptions(), resume=False)
    directory.save({"step": 1})
    torch.save({"step": Trap(sprung), "randomness": {}}, folder / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt.*is damaged"):
        directory.restore()
    directory.close()
    assert not sprung.exists()


# --- names that lead elsewhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filepath", ["..", "../Images", "Images/../../Images", "..\\Images", "/", "/tmp", "C:\\x", "a\0b"]
)
def test_a_folder_beyond_the_dataset_is_refused(tmp_path, filepath):
    root = tmp_path / "data"
    for folder in (tmp_path / "Images", root):
        folder.mkdir()
        (folder / NAME).write_bytes(b"")
    (root / "dataset_coco.json").write_text(json.dumps({"images": [{**ENTRY, "filepath": filepath}]}))
    with pytest.raises(DataError, match=r"images\[0\].*'filepath' .* is not a folder beside the file"):
        Karpathy.open("coco", "train", root)


@pytest.mark.parametrize("name", [f"../{NAME}", f"/tmp/{NAME}", f"..\\{NAME}"])
@pytest.mark.parametrize("layout", ["official", "list", "kaggle", "karpathy"])
def test_a_photo_beyond_the_dataset_is_refused(tmp_path, layout, name):
    root = tmp_path / "data"
    (root / "Images").mkdir(parents=True)
    for folder in (tmp_path, root, root / "Images"):
        (folder / NAME).write_bytes(b"")
    official, listed = f"{NAME}#0\ta dog\n", f"{NAME}\n"
    texts = {
        "official": {"Flickr8k.token.txt": f"{name}#0\ta dog\n", "Flickr_8k.trainImages.txt": listed},
        "list": {"Flickr8k.token.txt": official, "Flickr_8k.trainImages.txt": f"{name}\n"},
        "kaggle": {"captions.txt": f"image,caption\n{name},a dog\n"},
        "karpathy": {"dataset_flickr8k.json": json.dumps({"images": [{**ENTRY, "filename": name}]})},
    }
    for file, text in texts[layout].items():
        (root / file).write_text(text)
    with pytest.raises(DataError, match=r"is not of the form|is not the name of an image|is not in"):
        make_dataset("flickr8k", "train", root)


def test_a_captioner_cannot_name_the_file_of_its_features(tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "cache"
    monkeypatch.setenv("GLIMPSE_CACHE", str(cache))
    tensors, metadata = read_tensors(_written(tmp_path), "glimpse-captioner-1")
    metadata["encoder"] |= {"backbone": "x/../../../../escaped", "weights": "published"}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("encoder.backbone.")}
    path = tmp_path / "evil.safetensors"
    save_file(tensors, path, {key: json.dumps(value) for key, value in metadata.items()})
    captioner = load_captioner(path)
    assert table_path(FEW, captioner.encoder).parent == cache
    with pytest.raises(ValueError, match="unknown encoder 'x/"):
        GlimpseEnv(captioner=path, split="val").reset(seed=0)
    assert {file.parent for file in tmp_path.rglob("*") if file.is_file()} == {tmp_path, cache}


def _written(folder):
    path = folder / "captioner.safetensors"
    path.write_bytes(TARGETS["captioner"].seeds["a.safetensors"])
    return path


def test_pictures_stay_in_the_gallery(tmp_path):
    names = ["../up.jpg", "/etc/x.jpg", "....jpg", "a/../b.jpg", "<script>.jpg"]
    gallery = Gallery(tmp_path / "out", [tmp_path / name for name in names])
    assert all(os.sep not in name and name not in ("", ".", "..") for name in gallery._names)


# --- sizes that are claimed -------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_size(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(*size))
    before = begin_peak()
    with pytest.raises(DataError, match=r"bomb\.png cannot be read as an image \(.*pixels.*name another file"):
        read_photograph(path)
    assert peak() - before < 50


@pytest.mark.parametrize("change", [{"hidden_dim": 10**9}, {"hidden_dim": 20_000}, {"vocab_size": 10**9}])
def test_a_captioner_that_claims_to_be_huge_takes_no_memory(tmp_path, change):
    tensors, metadata = read_tensors(_written(tmp_path), "glimpse-captioner-1")
    metadata["decoder"] |= change
    save_file(tensors, tmp_path / "huge.safetensors", {key: json.dumps(value) for key, value in metadata.items()})
    before = begin_peak()
    with pytest.raises(FileFormatError, match=r"huge\.safetensors"):
        load_captioner(tmp_path / "huge.safetensors")
    assert peak() - before < 50


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    tensors, metadata = read_tensors(_written(tmp_path), "glimpse-captioner-1")
    tensors["decoder.selector.bias"][0] = value
    save_file(tensors, tmp_path / "odd.safetensors", {key: json.dumps(one) for key, one in metadata.items()})
    with pytest.raises(FileFormatError, match=r"'decoder.selector.bias' holds numbers that are not finite"):
        load_captioner(tmp_path / "odd.safetensors")


def test_tensors_of_other_kinds_are_refused(tmp_path):
    tensors, metadata = read_tensors(_written(tmp_path), "glimpse-captioner-1")
    written = {key: json.dumps(one) for key, one in metadata.items()}
    save_file({**tensors, "decoder.selector.bias": torch.zeros(1, dtype=torch.int64)}, tmp_path / "a", written)
    save_file({**tensors, "foreign": torch.zeros(1)}, tmp_path / "b", written)
    with pytest.raises(FileFormatError, match=r"holds torch\.int64, not real numbers"):
        load_captioner(tmp_path / "a")
    with pytest.raises(FileFormatError, match=r"there is 'foreign' of shape \(1,\), expected none"):
        load_captioner(tmp_path / "b")


@pytest.mark.parametrize("notes", [[], "x", 3, None])
def test_notes_that_are_no_object_are_refused(tmp_path, notes):
    for kind in ("attention", "policy"):
        path = tmp_path / f"{kind}.safetensors"
        path.write_bytes(TARGETS["attention"].seeds["a.safetensors"])
        tensors, metadata = read_tensors(path, "glimpse-attention-1")
        metadata |= {"notes": notes, kind: metadata["attention"]}
        save_file(tensors, path, {key: json.dumps(one) for key, one in metadata.items()})
        with pytest.raises(FileFormatError, match=r"its notes are .*, expected a JSON object"):
            find_agent(str(path), "shapes")


# --- programs that would be run, pipes that would be waited for -------------------------------------------------------


def test_postscript_is_not_run(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(DataError, match=r"photo\.jpg cannot be read as an image"):
        read_photograph(path)
    assert not ran.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason=f"{sys.platform} has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "photo.jpg"
    os.mkfifo(path)
    late = threading.Timer(20, lambda: path.write_bytes(b""))  # whoever waits is let go, and fails below
    late.start()
    try:
        with pytest.raises(DataError, match=r"photo\.jpg is not a file; name another file"):
            read_photograph(path)
    finally:
        late.cancel()
