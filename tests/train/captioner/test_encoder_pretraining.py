"""Pretraining teaches the tile CNN what a tile shows."""

from __future__ import annotations

import numpy as np
import torch

from glimpse_env.datasets import Shapes
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig
from train.captioner.encoder_pretraining import pretrain_tiles


def fresh_network():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return CNNEncoder(EncoderConfig(feature_dim=16)).backbone


def test_more_batches_tell_more_tiles_right():
    few = pretrain_tiles(fresh_network(), Shapes("train"), 2, np.random.default_rng(0))
    more = pretrain_tiles(fresh_network(), Shapes("train"), 25, np.random.default_rng(0))
    assert more > few


def test_the_network_itself_is_changed_and_the_seed_fixes_how():
    torch.manual_seed(1)
    first, second = fresh_network(), fresh_network()
    before = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        pretrain_tiles(first, Shapes("train"), 2, np.random.default_rng(3))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        pretrain_tiles(second, Shapes("train"), 2, np.random.default_rng(3))
    after, again = first.state_dict(), second.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("0.weight"))
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_every_kind_of_object_has_a_class():
    classes = {thing[i] for row in range(100) for thing in Shapes("val").objects(row) for i in range(3)}
    assert classes == {name for names in Shapes.label_names for name in names}
