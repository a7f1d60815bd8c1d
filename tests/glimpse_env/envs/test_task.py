"""Environments of a process share what is large, as long as it is the same."""

from __future__ import annotations

import gc
import json
import pickle
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.task import make_task
from glimpse_env.models.captioner import save_captioner


def test_what_is_made_from_one_file_is_shared(captioner_file):
    one, other = (make_task("shapes", "val", captioner_file, observe=how) for how in ("index", "features"))
    assert one.stock is other.stock
    assert one.stock is not make_task("shapes", "test", captioner_file).stock
    dynamics = [task.dynamics(2) for task in (one, other)]
    assert dynamics[0].decoder._gates is dynamics[1].decoder._gates
    assert dynamics[0].decoder is not dynamics[1].decoder


def test_a_captioner_in_memory_is_its_owners_to_change(captioner):
    assert make_task("shapes", "val", captioner).stock is not make_task("shapes", "val", captioner).stock


def test_what_nobody_uses_is_given_back_and_a_file_written_again_is_read_again(captioner_file, captioner, tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(captioner_file.read_bytes())
    stock = weakref.ref(make_task("shapes", "val", path).stock)
    gc.collect()
    assert stock() is None
    kept = make_task("shapes", "val", path)
    save_captioner(captioner, path, {"note": "written again"})
    assert make_task("shapes", "val", path).stock is not kept.stock


def test_weights_that_were_changed_are_not_handed_on(captioner_file):
    one = make_task("shapes", "val", captioner_file)
    bias = one.captioner.decoder.output_word.bias
    with torch.no_grad():
        bias.add_(1)
    other = make_task("shapes", "val", captioner_file)
    assert other.stock is not one.stock
    torch.testing.assert_close(other.captioner.decoder.output_word.bias, bias - 1)


def test_features_of_changed_weights_stay_out_of_the_shared_file(captioner_file, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path))
    one = make_task("shapes", "val", captioner_file)
    before = one.features[[0]]
    with torch.no_grad():
        for parameter in one.captioner.encoder.parameters():
            parameter.add_(0.5)
    late = one.features[[80]]
    fresh = make_task("shapes", "val", captioner_file)
    assert np.array_equal(fresh.features[[80]], late)
    assert np.array_equal(fresh.features[[0]], before)


def test_tables_are_pickled_without_their_values(captioner_file, tmp_path, monkeypatch):
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path))
    features = make_task("shapes", "train", captioner_file).features
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
    one = make_task("flickr8k", "val", captioner_file, data_root=tmp_path)
    write("a large blue cross")
    other = make_task("flickr8k", "val", captioner_file, data_root=tmp_path)
    assert one.stock.references.references(0) == ["a small red ring".split()]
    assert other.stock.references.references(0) == ["a large blue cross".split()]


def test_states_of_another_shaping_are_refused(captioner_file):

    shaped, plain = (
        GlimpseEnv(captioner=captioner_file, split="val", reward="rouge-l", shaped=how) for how in (True, False)
    )
    for env in (shaped, plain):
        env.reset(seed=0)
    with pytest.raises(ValueError, match="another reward"):
        shaped.set_state(plain.get_state())
