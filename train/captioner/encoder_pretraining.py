"""Pretraining of a tile CNN by classification of what a tile shows.

It is to drawn scenes what ImageNet is to photographs (SAT §4.3 uses a pretrained CNN).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from glimpse_env.datasets import LabelledDataset
from glimpse_env.models.encoders.backbones import TileCNN
from glimpse_env.rendering.inputs import as_picture

_SCENES = 64  # a batch
_EMPTY_TILES = 8  # a scene


def pretrain_tiles(network: TileCNN, dataset: LabelledDataset, steps: int, rng: np.random.Generator) -> float:
    """Train ``network`` to classify every attribute of the object in a tile, or that the tile is empty.

    Returns:
        The share of tiles of the last of ``steps`` batches with all attributes classified correctly.
    """
    device = next(network.parameters()).device
    width = network.layers(_cut(network, dataset, 0)[:1].to(device).float()).shape[1]
    heads = nn.ModuleList(nn.Linear(width, len(names) + 1) for names in dataset.label_names).to(device)
    optimiser = torch.optim.Adam([*network.parameters(), *heads.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    accuracy = 0.0
    for _ in (bar := tqdm(range(steps), desc="tiles", unit="batch")):
        tiles, labels = (tensor.to(device) for tensor in _draw(network, dataset, rng))
        vectors = network.layers(tiles)
        logits = [head(vectors) for head in heads]
        losses = [nn.functional.cross_entropy(scores, labels[:, i]) for i, scores in enumerate(logits)]
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        optimiser.step()
        schedule.step()
        predicted = torch.stack([scores.argmax(-1) for scores in logits], 1)
        accuracy = float((predicted == labels).all(1).float().mean())
        bar.set_postfix(right=f"{accuracy:.3f}")
    return accuracy


def _cut(network: TileCNN, dataset: LabelledDataset, row: int) -> Tensor:
    """The tiles of an image, (L, 3, h, w), uint8."""
    pixels = torch.from_numpy(np.array(as_picture(dataset.image(row)))).permute(2, 0, 1)
    return network.tiles(pixels.unsqueeze(0)).flatten(0, 2)


def _draw(network: TileCNN, dataset: LabelledDataset, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tiles (M, 3, h, w), in [−1, 1] as the encoder scales them, and their classes (M, attributes), int64."""
    no_object = tuple(map(len, dataset.label_names))
    tiles, labels = [], []
    for row in rng.integers(len(dataset), size=_SCENES).tolist():
        cut, objects = _cut(network, dataset, row), dataset.location_labels(row)
        empty = rng.choice([tile for tile in range(len(cut)) if tile not in objects], _EMPTY_TILES, replace=False)
        for tile in [*objects, *empty.tolist()]:
            tiles.append(cut[tile])
            labels.append(objects.get(tile, no_object))
    return torch.stack(tiles).float() / 127.5 - 1, torch.tensor(labels)
