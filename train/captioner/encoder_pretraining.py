"""Pretraining of the tile CNN of Shapes by classification of tiles.

It is to Shapes what ImageNet is to photographs (SAT §4.3 uses a pretrained CNN).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from glimpse_env.datasets.shapes import COLOURS, SHAPES, SIZES, TILE, Shapes
from glimpse_env.models.encoders.backbones import TileCNN

KINDS = (tuple(SIZES), tuple(COLOURS), tuple(SHAPES))  # classes of each head; the class past the last is "no object"
_SCENES = 64  # a batch
_EMPTY_TILES = 8  # a scene


def pretrain_tiles(network: TileCNN, dataset: Shapes, steps: int, rng: np.random.Generator) -> float:
    """Train ``network`` to classify size, colour and shape of the object in a tile, or that the tile is empty.

    Args:
        network: changed in place.
        dataset: scenes with ground truth.
        steps: batches of 64 scenes.
        rng: draws scenes and tiles.

    Returns:
        The share of tiles of the last batch with all three classified correctly.
    """
    device = next(network.parameters()).device
    width = network(torch.zeros(1, 3, *(TILE * side for side in network.grid), device=device)).shape[1]
    heads = nn.ModuleList(nn.Linear(width, len(kinds) + 1) for kinds in KINDS).to(device)
    optimiser = torch.optim.Adam([*network.parameters(), *heads.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    accuracy = 0.0
    with tqdm(range(steps), desc="tiles", unit="batch") as bar:
        for _ in bar:
            tiles, labels = _draw(dataset, rng)
            vectors = network.layers(tiles.to(device))
            labels = labels.to(device)
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


def _draw(dataset: Shapes, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tiles (M, 3, 16, 16), in [−1, 1] as the encoder scales them, and their classes (M, 3), int64."""
    tiles, labels = [], []
    for row in rng.integers(len(dataset), size=_SCENES).tolist():
        pixels = np.asarray(dataset.image(row))
        side = dataset.world.side
        cut = pixels.reshape(side, TILE, side, TILE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, TILE, TILE)
        objects = {thing.tile: thing for thing in dataset.objects(row)}
        empty = rng.choice([tile for tile in range(len(cut)) if tile not in objects], _EMPTY_TILES, replace=False)
        for tile in [*objects, *empty.tolist()]:
            thing = objects.get(tile)
            tiles.append(cut[tile])
            labels.append([kinds.index(thing[i]) if thing else len(kinds) for i, kinds in enumerate(KINDS)])
    return torch.from_numpy(np.stack(tiles)).float() / 127.5 - 1, torch.tensor(labels)
