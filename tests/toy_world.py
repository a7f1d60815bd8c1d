"""A world registered from outside the package: strips of coloured cells, read from left to right.

``import tests.toy_world`` registers ``Glimpse/ToyStrips-v0``; so does ``--dataset tests.toy_world:toy-strips``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import glimpse_env
from glimpse_env import DatasetSpec, LocationGrid

CELL, CELLS = 16, 10
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 90, 220), "white": (240, 240, 240)}
SPLITS = ("train", "val", "test")


class Strips:
    """Strips of 16 × 160 pixels; the first 2 to 4 cells are coloured, 4 to 10 cells can be looked at."""

    name = "toy-strips"
    procedural = True

    def __init__(self, split: str, count: int = 32) -> None:
        self.split, self.count = split, count

    def __len__(self) -> int:
        return self.count

    def _draw(self, row: int) -> tuple[list[str], int, np.random.Generator]:
        rng = np.random.default_rng([SPLITS.index(self.split), row])
        colours = rng.choice(list(COLOURS), int(rng.integers(2, 5)))
        return [str(colour) for colour in colours], int(rng.integers(4, CELLS + 1)), rng

    def image(self, row: int) -> Image.Image:
        colours, _, rng = self._draw(row)
        pixels = rng.integers(90, 110, (CELL, CELL * CELLS, 3))
        for cell, colour in enumerate(colours):
            pixels[:, cell * CELL : (cell + 1) * CELL] = COLOURS[colour]
        return Image.fromarray(pixels.astype(np.uint8))

    def image_id(self, row: int) -> str:
        return f"strip-{self.split}-{row}"

    def references(self, row: int) -> list[list[str]]:
        return [self._draw(row)[0]]

    def fingerprint(self) -> str:
        return f"toy-strips-1 {self.split} {self.count}"

    def location_mask(self, row: int) -> np.ndarray:
        return np.arange(CELLS) < self._draw(row)[1]


class GroundedStrips(Strips):
    """Strips that know where each of their words is read."""

    name = "toy-grounded"
    content_words = frozenset(COLOURS)
    naming_words: Sequence[str] = tuple(COLOURS)

    def object_locations(self, row: int) -> list[int]:
        return list(range(len(self._draw(row)[0])))

    def ordered_references(self, row: int) -> list[list[str]]:
        return self.references(row)

    def word_locations(self, row: int) -> dict[str, tuple[int, ...]]:
        colours = self._draw(row)[0]
        return {word: tuple(i for i, colour in enumerate(colours) if colour == word) for word in colours}

    def glimpses(self, row: int, caption: Sequence[str]) -> list[int]:
        return [*range(len(caption)), -1]


def spec(kind: type[Strips], env_id: str, **changes: object) -> DatasetSpec:
    """The world of one of the datasets above."""
    fields = {
        "grid": LocationGrid((CELLS,), (CELL, CELL)),
        "image_size": (CELL, CELL * CELLS),
        "longest": 6,
        "grounded": issubclass(kind, GroundedStrips),
        "metrics": ("bleu", "exact", "wer"),
        "hyperparameters": {"epochs": 1, "batch_images": 4, "hidden_dim": 24, "embed_dim": 8, "context_dim": 12},
    }

    def open_split(split: str, root: Path | None) -> Strips:
        return kind(split)

    return DatasetSpec(**{"name": kind.name, "env_id": env_id, "open": open_split, **fields, **changes})


STRIPS = spec(Strips, "Glimpse/ToyStrips-v0")
GROUNDED = spec(GroundedStrips, "Glimpse/ToyGrounded-v0")
for world in (STRIPS, GROUNDED):
    glimpse_env.register_world(world)
