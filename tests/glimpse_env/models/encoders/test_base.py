"""An encoder of one's own, with the methods of ``Encoder`` alone, serves a feature table and an environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import nn

from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.datasets import make_dataset
from glimpse_env.features.build import open_features
from glimpse_env.models.captioner import Captioner, save_captioner
from glimpse_env.models.encoders.base import Encoder
from glimpse_env.models.encoders.cnn import EncoderConfig
from tests.conftest import build_captioner
from tests.toy_world import CELL, CELLS, COLOURS, STRIPS


class MeanColours:
    """Mean colours of the cells of a strip."""

    name, num_locations, feature_dim, encodes_single_locations = "mean-colours", CELLS, 8, True
    grid = LocationGrid((CELLS,), (CELL, CELL))
    device = torch.device("cpu")

    def to(self, device):
        return self

    def encode(self, inputs):
        pixels = np.stack([np.asarray(image, np.float32) for image in inputs]) / 255
        colours = pixels.reshape(len(pixels), CELL, CELLS, CELL, 3).mean((1, 3))  # (B, L, 3)
        return torch.from_numpy(np.pad(colours, ((0, 0), (0, 0), (0, 5))))

    def encode_location(self, inputs, locations):
        return self.encode(inputs)[torch.arange(len(inputs)), torch.as_tensor(locations)]

    def fingerprint(self):
        return "mean-colours-1"


class MeanColoursModule(MeanColours, nn.Module):
    """The same as a PyTorch module."""


@pytest.fixture(params=[MeanColours, MeanColoursModule])
def captioner(request):
    sees = EncoderConfig(image_size=(CELL, CELL * CELLS), grid=(CELLS,), feature_dim=8)
    other = build_captioner(words=tuple(COLOURS), sees=sees, dataset=STRIPS.name)
    return Captioner(request.param(), other.decoder, other.vocabulary, STRIPS.name).eval()


def test_a_feature_table_has_its_annotations(captioner):
    assert isinstance(captioner.encoder, Encoder)
    dataset = make_dataset(STRIPS.name, "val")
    table, mask = open_features(dataset, captioner.encoder), dataset.location_mask(5)
    expected = captioner.encoder.encode([dataset.image(5)])[0].half().numpy()
    assert np.array_equal(table[5][mask], expected[mask])


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_an_environment_runs_with_it(captioner, attention):
    env = gym.make(STRIPS.env_id, captioner=captioner, attention=attention, render_mode="rgb_array").unwrapped
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert env.render().shape[1] == 448


def test_only_a_cnn_encoder_can_be_saved(captioner, tmp_path):
    with pytest.raises(TypeError, match="only captioners with a CNNEncoder can be saved, and this one has"):
        save_captioner(captioner, tmp_path / "captioner.safetensors")
