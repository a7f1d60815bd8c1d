"""Shapes: procedural scenes of coloured objects, drawn and described from (split, row) alone.

The dataset also has the ground truth of attention: which tile shows what a word names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.datasets.base import SPLITS, DatasetSpec, check_split
from glimpse_env.rendering.drawing import mark_drawing

TILE = 16  # pixels
SIZES = {"small": 4.2, "large": 6.8}  # radius, pixels
COLOURS = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (52, 101, 220),
    "yellow": (240, 200, 30),
    "purple": (142, 68, 190),
    "cyan": (40, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
_SUPERSAMPLE = 8
_PALETTE = np.array(list(COLOURS.values()), np.float32)

Mask = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ShapesConfig:
    """What distinguishes the worlds of Shapes.

    Attributes:
        name: the dataset's short name.
        version: part of the fingerprint; raise it when a scene's pixels change.
        side: tiles a side.
        objects: least and greatest number of objects in a scene.
        clutter: least and greatest number of tiles with clutter.
        train: scenes of the train split; val and test have 1,000 each.
        any_order: whether references name the objects after the subject in any order, or only in reading order.
    """

    name: str
    version: str
    side: int
    objects: tuple[int, int]
    clutter: tuple[int, int]
    train: int
    any_order: bool

    @property
    def longest(self) -> int:
        """Words of the longest caption, ``<end>`` included."""
        return 7 * self.objects[1] - 1


SMALL = ShapesConfig("shapes", "shapes-2", 7, objects=(2, 3), clutter=(10, 18), train=20_000, any_order=True)
LARGE = ShapesConfig(
    "shapes-large", "shapes-large-1", 14, objects=(4, 5), clutter=(40, 72), train=10_000, any_order=False
)


class SceneObject(NamedTuple):
    """One object of a scene and the tile (row · side + column) that shows it."""

    size: str
    colour: str
    shape: str
    tile: int

    @property
    def noun_phrase(self) -> list[str]:
        """Words that name it in a caption, such as ``a small red circle``."""
        return ["a", self.size, self.colour, self.shape]


class Shapes:
    """Scenes of a few objects on a noisy, cluttered background, RGB.

    No two objects of a scene share a colour, a shape, a row or a column, so each is above or below, and left or right
    of, every other. The clutter has the objects' colours; captions do not name it.

    Args:
        split: train, val or test.
        config: by default two or three objects on 7 × 7 tiles, 112 × 112 pixels; ``LARGE`` has four or five on 14 × 14
            tiles, 224 × 224 pixels.

    Raises:
        ValueError: another split.
    """

    procedural = True
    content_words = frozenset((*SIZES, *COLOURS, *SHAPES))
    naming_words = SHAPES  # the last word of a noun phrase
    label_names = (tuple(SIZES), tuple(COLOURS), SHAPES)

    def __init__(self, split: str, config: ShapesConfig = SMALL) -> None:
        self.split = check_split(split)
        self.config, self.name = config, config.name
        self._length = config.train if split == "train" else 1_000

    def __len__(self) -> int:
        return self._length

    def objects(self, row: int) -> tuple[SceneObject, ...]:
        """The objects of a scene in reading order, from the top."""
        return self._scene(row)[0]

    def image(self, row: int) -> Image.Image:
        """The scene as a square RGB image, 16 pixels a tile, marked as a drawing."""
        objects, rng = self._scene(row)
        side, (least, most) = self.config.side, self.config.clutter
        shade = rng.uniform(70, 150)
        canvas = rng.integers(-20, 21, (side * TILE, side * TILE, 3), dtype=np.int8).astype(np.float32) + shade
        occupied = {thing.tile for thing in objects}
        free = [tile for tile in range(side * side) if tile not in occupied]
        for tile in rng.choice(free, size=int(rng.integers(least, most + 1)), replace=False):
            strokes = _stroke_masks()[int(rng.integers(len(_stroke_masks())))]
            colour = _PALETTE[int(rng.integers(len(_PALETTE)))] * rng.uniform(0.6, 1.1)
            _blend(canvas, divmod(int(tile), side), strokes, colour)
        for thing in objects:
            masks = _shape_masks()[thing.shape, thing.size]
            colour = np.array(COLOURS[thing.colour], np.float32) * rng.uniform(0.85, 1.1)
            _blend(canvas, divmod(thing.tile, side), masks[int(rng.integers(len(masks)))], colour)
        return mark_drawing(Image.fromarray(canvas.clip(0, 255).astype(np.uint8)))

    def image_id(self, row: int) -> str:
        """``<world>-<split>-<row>``, such as ``shapes-val-7``."""
        return f"{self.name}-{self.split}-{self._check(row)}"

    def references(self, row: int) -> list[list[str]]:
        """All valid descriptions: 8 of two objects, 48 of three; 64 of four, 160 of five.

        A caption relates one object to each of the others, which come in any order or, in the large world, in reading
        order::

            caption  = subject relation object {"and" relation object}
            subject  = "there is" phrase | phrase "is"
            phrase   = "a" size colour shape
            relation = "above" | "below" | "left of" | "right of"
        """
        objects = self.objects(row)
        if self.config.any_order:
            return self._describe(itertools.permutations(objects))
        return self._describe((subject, *(thing for thing in objects if thing is not subject)) for subject in objects)

    def ordered_references(self, row: int) -> list[list[str]]:
        """The references that name the objects in reading order: 4 of two objects, twice as many for each more."""
        return self._describe([self.objects(row)])

    def _describe(self, orders: Iterable[tuple[SceneObject, ...]]) -> list[list[str]]:
        captions = []
        for subject, *things in orders:
            phrase = subject.noun_phrase
            clauses = [
                [("and", *relation, *thing.noun_phrase) for relation in self._relations(subject, thing)]
                for thing in things
            ]
            for chosen in itertools.product(*clauses):
                predicate = [*itertools.chain.from_iterable(chosen)][1:]
                captions += [["there", "is", *phrase, *predicate], [*phrase, "is", *predicate]]
        return captions

    def object_locations(self, row: int) -> list[int]:
        """The tiles of a scene's objects in reading order."""
        return [thing.tile for thing in self.objects(row)]

    def location_labels(self, row: int) -> dict[int, tuple[int, ...]]:
        """Size, colour and shape of the object of each tile that shows one, as indices of ``label_names``."""
        return {
            thing.tile: tuple(names.index(word) for names, word in zip(self.label_names, thing[:3], strict=True))
            for thing in self.objects(row)
        }

    def word_locations(self, row: int) -> dict[str, tuple[int, ...]]:
        """For every content word of a scene (size, colour, shape), the tiles that show what it names."""
        tiles: dict[str, tuple[int, ...]] = {}
        for thing in self.objects(row):
            for word in thing[:3]:
                tiles[word] = (*tiles.get(word, ()), thing.tile)
        return tiles

    def glimpses(self, row: int, caption: Sequence[str]) -> list[int]:
        """The tile of the object that each word of a reference names, or that is named next; −1 for ``<end>``."""
        tiles = {thing[:3]: thing.tile for thing in self.objects(row)}
        locations: list[int] = []
        for i, word in enumerate(caption):
            if word in SHAPES:
                size, colour, shape = caption[i - 2 : i + 1]
                locations += [tiles[size, colour, shape]] * (i + 1 - len(locations))
        return [*locations, -1]

    def _relations(self, subject: SceneObject, thing: SceneObject) -> tuple[list[str], list[str]]:
        (row, column), (row2, column2) = (divmod(tile, self.config.side) for tile in (subject.tile, thing.tile))
        return ["above" if row < row2 else "below"], ["left" if column < column2 else "right", "of"]

    def fingerprint(self) -> str:
        """The version of the drawing code and the split: the scenes follow from them."""
        return f"{self.config.version} {self.split} {len(self)}"

    def _check(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"image {row} does not exist; Shapes {self.split} has rows 0 to {len(self) - 1}")
        return int(row)

    def _scene(self, row: int) -> tuple[tuple[SceneObject, ...], np.random.Generator]:
        rng = np.random.Generator(np.random.PCG64([SPLITS.index(self.split), self._check(row)]))
        side, (least, most) = self.config.side, self.config.objects
        count = int(rng.integers(least, most + 1))
        tiles = np.sort(rng.permutation(side)[:count]) * side + rng.permutation(side)[:count]
        sizes = rng.integers(len(SIZES), size=count)
        attributes = (sizes, rng.permutation(len(COLOURS))[:count], rng.permutation(len(SHAPES))[:count])
        words = ([names[i] for i in drawn] for names, drawn in zip(self.label_names, attributes, strict=True))
        things = [SceneObject(*thing) for thing in zip(*words, tiles.tolist(), strict=True)]
        return tuple(things), rng


def _blend(canvas: Mask, position: tuple[int, int], mask: Mask, colour: Mask) -> None:
    row, column = position
    patch = canvas[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
    # Objects keep the background's grain, so that smoothness does not give them away.
    patch += mask[..., None] * (colour + 0.5 * (patch - patch.mean()) - patch)


@lru_cache(maxsize=1)
def _shape_masks() -> dict[tuple[str, str], list[Mask]]:
    """Anti-aliased masks of every shape and size, shifted by up to one pixel."""
    shifts = list(itertools.product((-1.0, 0.0, 1.0), repeat=2))
    return {
        (shape, size): [_draw(shape, radius, dx, dy) for dx, dy in shifts]
        for shape in SHAPES
        for size, radius in SIZES.items()
    }


def _draw(shape: str, radius: float, dx: float, dy: float) -> Mask:
    image, pen, scale = _canvas()
    x, y, r = (TILE / 2 + dx) * scale, (TILE / 2 + dy) * scale, radius * scale
    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=0)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=255)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=255)
    elif shape == "diamond":
        pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=255)
    else:
        pen.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=255)
        pen.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=255)
    return _shrink(image)


@lru_cache(maxsize=1)
def _stroke_masks() -> list[Mask]:
    """Masks of clutter, strokes and dots, the same for every scene."""
    rng = np.random.Generator(np.random.PCG64(0))
    masks = []
    for _ in range(64):
        image, pen, scale = _canvas()
        for _ in range(int(rng.integers(2, 5))):
            x, y = rng.uniform(2, TILE - 2, 2) * scale
            if rng.random() < 0.4:
                r = rng.uniform(0.8, 1.5) * scale
                pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
            else:
                x2, y2 = rng.uniform(1, TILE - 1, 2) * scale
                pen.line((x, y, x2, y2), fill=255, width=int(1.2 * scale))
        masks.append(_shrink(image))
    return masks


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    image = Image.new("L", (TILE * _SUPERSAMPLE, TILE * _SUPERSAMPLE), 0)
    return image, ImageDraw.Draw(image), _SUPERSAMPLE


def _shrink(image: Image.Image) -> Mask:
    return np.asarray(image.resize((TILE, TILE), Image.Resampling.BOX), np.float32) / np.float32(255)


def _world(config: ShapesConfig, env_id: str, scenes: str, **fields: Any) -> DatasetSpec:
    side = config.side
    return DatasetSpec(
        config.name,
        env_id,
        lambda split, root: Shapes(split, config),
        grid=LocationGrid((side, side), (TILE, TILE)),
        image_size=(side * TILE, side * TILE),
        longest=config.longest,
        grounded=True,
        training_data=f"{scenes}, drawn and described from their number: {config.train:,} to train on, 1,000 of val to "
        "choose the weights that are kept, 1,000 of test.",
        limits=(
            "It knows {words} words and scenes of this world, drawn by this package, and nothing else: on any other "
            "picture it says something about shapes that are not there. It is for research on where to look, not for "
            "describing images.",
        ),
        **fields,
    )


_SMALL = {"reinforce": {"images": 16, "updates": 2000, "learning_rate": 2e-3, "entropy_bonus": 0.01}}
_LARGE: dict[str, Any] = {"hyperparameters": {"epochs": 3}, "learner_options": {"reinforce": {"updates": 4000}}}
WORLDS = (
    _world(SMALL, "Glimpse/Shapes-v0", "Scenes of Shapes", learner_options=_SMALL, live_steps=250_000),
    _world(LARGE, "Glimpse/ShapesLarge-v0", "Scenes of the larger world of Shapes", **_LARGE),
)
