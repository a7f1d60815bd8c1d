"""Arguments of the environments, and the assets that environments of one process share."""

from __future__ import annotations

import gc
import inspect
import json
import pickle
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.models.captioner import save_captioner


def open_env(captioner, **options):
    return GlimpseEnv("shapes", "val", captioner, **options)


def test_environments_of_one_file_share_their_assets(captioner_file):
    tasks = [open_env(captioner_file, observe=observe).task for observe in ("index", "features")]
    assert tasks[0].assets is tasks[1].assets
    assert tasks[0].assets is not GlimpseEnv("shapes", "test", captioner_file).task.assets
    dynamics = [task.dynamics(2) for task in tasks]
    assert dynamics[0].decoder._gates is dynamics[1].decoder._gates
    assert dynamics[0].decoder is not dynamics[1].decoder


def test_a_captioner_in_memory_is_not_shared(captioner):
    assert open_env(captioner).task.assets is not open_env(captioner).task.assets


def test_unused_assets_are_released_and_a_file_written_again_is_read_again(captioner_file, captioner, tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(captioner_file.read_bytes())
    assets = weakref.ref(open_env(path).task.assets)
    gc.collect()
    assert assets() is None
    env = open_env(path)
    save_captioner(captioner, path, {"note": "written again"})
    assert open_env(path).task.assets is not env.task.assets


def test_changed_weights_are_not_shared(captioner_file):
    changed = open_env(captioner_file)
    bias = changed.captioner.decoder.output_word.bias
    with torch.no_grad():
        bias.add_(1)
    fresh = open_env(captioner_file)
    assert fresh.task.assets is not changed.task.assets
    torch.testing.assert_close(fresh.captioner.decoder.output_word.bias, bias - 1)


@pytest.mark.parametrize("make", [GlimpseEnv, GlimpseVectorEnv])
def test_an_unknown_argument_is_named_and_known_ones_are_in_the_signature(make):
    with pytest.raises(TypeError, match="unexpected keyword argument 'image_size'"):
        make(image_size=7)
    parameters = inspect.signature(GlimpseEnv).parameters
    assert list(parameters)[:3] == ["dataset", "split", "captioner"]
    for name in parameters:
        assert name == "dataset" or f"`{name}`" in GlimpseEnv.__doc__.split("## Arguments")[1]


def test_features_of_changed_weights_stay_out_of_the_shared_file(captioner_file, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path))
    changed = open_env(captioner_file)
    before = changed.features[[0]]
    with torch.no_grad():
        for parameter in changed.captioner.encoder.parameters():
            parameter.add_(0.5)
    late = changed.features[[80]]
    fresh = open_env(captioner_file)
    assert np.array_equal(fresh.features[[80]], late)
    assert np.array_equal(fresh.features[[0]], before)


def test_tables_are_pickled_without_their_values(captioner_file, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path))
    features = GlimpseEnv("shapes", "train", captioner_file).features
    expected = features[[3, 19_999]]
    written = pickle.dumps(features)
    assert len(written) < 500_000 < features.shape[0] * 49 * 8 * 2
    assert np.array_equal(pickle.loads(written)[[3, 19_999]], expected)


def test_references_that_were_written_anew_are_read_anew(tmp_path, captioner, captioner_file):
    (tmp_path / "Images").mkdir()
    Image.new("RGB", (112, 112)).save(tmp_path / "Images" / "a.jpg")

    def write(caption):
        record = {"filename": "a.jpg", "split": "val", "sentences": [{"tokens": caption.split(), "raw": caption}]}
        (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": [record]}))

    write("a small red ring")
    before = GlimpseEnv("flickr8k", "val", captioner_file, data_root=tmp_path)
    write("a large blue cross")
    after = GlimpseEnv("flickr8k", "val", captioner_file, data_root=tmp_path)
    assert before.task.assets.references.references(0) == ["a small red ring".split()]
    assert after.task.assets.references.references(0) == ["a large blue cross".split()]


def test_states_of_another_shaping_are_refused(captioner_file):
    shaped, plain = (open_env(captioner_file, reward="rouge-l", shaped=shaped) for shaped in (True, False))
    for env in (shaped, plain):
        env.reset(seed=0)
    with pytest.raises(ValueError, match="another reward"):
        shaped.set_state(plain.get_state())
