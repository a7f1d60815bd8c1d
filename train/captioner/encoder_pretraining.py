"""Teach the tile CNN to see before it is asked to speak: classification of what a tile shows.

It stands to Shapes as ImageNet to photographs (SAT §4.3 reads a pretrained CNN). It does not know captions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from glimpse_env.datasets.shapes import COLOURS, SHAPES, SIZES, TILE, Shapes
from glimpse_env.models.encoders.backbones import TileCNN

KINDS = (tuple(SIZES), tuple(COLOURS), tuple(SHAPES))  # what is told of a tile; the class past the last is "no object"
SCENES = 64  # a batch
EMPTY = 8  # tiles without an object, of each scene


def pretrain_tiles(network: TileCNN, dataset: Shapes, steps: int, rng: np.random.Generator) -> float:
    """Train ``network`` to tell size, colour and shape of what a tile shows, or that it shows no object.

    Args:
        network: changed in place.
        dataset: scenes with ground truth.
        steps: batches of 64 scenes.
        rng: chooses scenes and tiles.

    Returns:
        The share of tiles of the last batch of which all three were told right.
    """
    device = next(network.parameters()).device
    width = network(torch.zeros(1, 3, *(TILE * side for side in network.grid), device=device)).shape[1]
    heads = nn.ModuleList(nn.Linear(width, len(kinds) + 1) for kinds in KINDS).to(device)
    optimiser = torch.optim.Adam([*network.parameters(), *heads.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    right = 0.0
    with tqdm(range(steps), desc="tiles", unit="batch") as bar:
        for _ in bar:
            tiles, labels = _draw(dataset, rng)
            vectors = network.layers(tiles.to(device))
            labels = labels.to(device)
            logits = [head(vectors) for head in heads]
            losses = [nn.functional.cross_entropy(one, labels[:, i]) for i, one in enumerate(logits)]
            optimiser.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()
            optimiser.step()
            schedule.step()
            told = torch.stack([one.argmax(-1) for one in logits], 1)
            right = float((told == labels).all(1).float().mean())
            bar.set_postfix(right=f"{right:.3f}")
    return right


def _draw(dataset: Shapes, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Tiles (M, 3, 16, 16), in [−1, 1] as the encoder scales them, and their classes (M, 3), int64."""
    tiles, labels = [], []
    for row in rng.integers(len(dataset), size=SCENES).tolist():
        pixels = np.asarray(dataset.image(row))
        side = dataset.world.side
        cut = pixels.reshape(side, TILE, side, TILE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, TILE, TILE)
        objects = {thing.tile: thing for thing in dataset.objects(row)}
        others = rng.choice([tile for tile in range(len(cut)) if tile not in objects], EMPTY, replace=False)
        for tile in [*objects, *others.tolist()]:
            thing = objects.get(tile)
            tiles.append(cut[tile])
            labels.append([kinds.index(thing[i]) if thing else len(kinds) for i, kinds in enumerate(KINDS)])
    return torch.from_numpy(np.stack(tiles)).float() / 127.5 - 1, torch.tensor(labels)
