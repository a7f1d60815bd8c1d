"""The model of caption training: its encoder sees a world on the world's grid and at the world's size."""

from __future__ import annotations

import pytest

import glimpse_env
from glimpse_env import LocationGrid
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import make_dataset
from glimpse_env.models.captioner import Captioner, save_captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.backbones import OFFLINE_BACKBONE
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from tests.toy_world import CELL, COLOURS, Strips, spec
from train.captioner.model import load_model, new_encoder, new_model


def world(name: str, **changes) -> str:
    """The name of a new world of strips."""
    kind = type("NamedStrips", (Strips,), {"name": name})
    glimpse_env.register_world(spec(kind, f"Glimpse/{name.title()}-v0", **changes))
    return name


def test_an_encoder_sees_inputs_at_the_size_of_the_world():
    pytest.importorskip("timm")
    name = world("toy-wide", encoder=OFFLINE_BACKBONE, image_size=(32, 320))
    encoder = new_encoder(name, OFFLINE_BACKBONE)
    assert (encoder.config.image_size, encoder.grid.shape) == ((32, 320), (10,))
    picture = make_dataset(name, "val").image(0)
    assert encoder.encode([picture]).shape == (1, 10, encoder.feature_dim)
    assert new_encoder(world("toy-square", encoder=OFFLINE_BACKBONE, image_size=(64, 64), grid=None), OFFLINE_BACKBONE)
    shapes = new_encoder("shapes", OFFLINE_BACKBONE)  # the size of a world of tiles is that of its tiles
    assert (shapes.config.image_size, shapes.grid.shape) == (224, (7, 7))


def test_an_encoder_with_another_grid_is_refused():
    pytest.importorskip("timm")
    dataset = make_dataset(world("toy-mismatch", encoder=OFFLINE_BACKBONE, image_size=None), "val")
    with pytest.raises(ValueError, match="'efficientnet-lite2' sees a grid of 7x7 locations, but toy-mismatch has 10;"):
        new_model(dataset, OFFLINE_BACKBONE, 1, attention=False)


def start(folder, sees: EncoderConfig) -> str:
    """A run directory with a captioner of strips."""
    decoder = CaptionDecoder(DecoderConfig(4 + len(COLOURS), sees.feature_dim, 3, 3, 3))
    captioner = Captioner(CNNEncoder(sees), decoder, Vocabulary(list(COLOURS)), "toy-strips")
    save_captioner(captioner, folder / "captioner.safetensors")
    return str(folder)


def test_only_tiles_are_spread_over_another_grid(tmp_path):
    pytest.importorskip("timm")
    dataset = make_dataset(world("toy-five", image_size=(CELL, 5 * CELL), grid=LocationGrid((5,))), "val")
    tiles = start(tmp_path, EncoderConfig(image_size=(CELL, 10 * CELL), grid=(10,), feature_dim=8))
    assert load_model(tiles, False, dataset).captioner.encoder.grid.shape == (5,)
    published = EncoderConfig(OFFLINE_BACKBONE, 224, (7, 7), 1280, positions=False, weights="published")
    with pytest.raises(ValueError, match=r"captioner .* sees a grid of 7x7 locations, but toy-five has 5; start from"):
        load_model(start(tmp_path, published), False, dataset)
