"""What pictures are drawn with: colours, fonts, tiles of a grid, a box, a light, and checks of what is drawn.

It is handed pixels, grids and weights. It does not know what a picture is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]
Pixels = NDArray[np.float32]  # (H, W, channels); a picture is float in [0, 255] while layers are blended

ACCENT: Colour = (255, 209, 102)
INK: Colour = (20, 22, 28)
PAPER: Colour = (255, 255, 255)
TEXT: Colour = (236, 237, 240)
MUTED: Colour = (138, 143, 156)
RULE: Colour = (46, 49, 58)

_DRAWING = "glimpse_env.rendering.drawing"  # in the info of an image that is one


class Tile(NamedTuple):
    """Pixels of one location: left and top belong to it, right and bottom are the first that do not."""

    left: int
    top: int
    right: int
    bottom: int


def check_grid(grid: tuple[int, int]) -> None:
    """See that a grid has rows and columns.

    Raises:
        ValueError: it has none.
    """
    if min(grid) < 1:
        raise ValueError(f"grid is {grid}; expected (rows, columns), each at least 1")


def check_size(name: str, size: int, least: int, grid: tuple[int, int]) -> None:
    """See that ``size`` pixels, called ``name`` in the message, are enough for a grid.

    Raises:
        ValueError: they are fewer than ``least``.
    """
    if size < least:
        raise ValueError(f"{name} is {size}; a {grid[0]}x{grid[1]} grid and its words need at least {least} pixels")


def check_weights(weights: NDArray[Any], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Weights as shares of the heaviest, (L,) in [0, 1]; all zeros mean no preference and become ones."""
    locations = grid[0] * grid[1]
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (locations,):
        raise ValueError(
            f"weights has shape {array.shape}; a {grid[0]}x{grid[1]} grid needs one weight a location, ({locations},)"
        )
    wrong = np.flatnonzero(~np.isfinite(array) | (array < 0))
    if wrong.size:
        raise ValueError(f"weights[{wrong[0]}] is {array[wrong[0]]}; weights must be finite and not negative")
    heaviest = array.max()
    return array / heaviest if heaviest > 0 else np.ones(locations)


def is_hard(weights: NDArray[np.float64]) -> bool:
    """Whether one location has all the weight."""
    return int(np.count_nonzero(weights)) == 1


def tile_of(location: int, grid: tuple[int, int], size: int) -> Tile:
    """The pixels of a location in an image of ``size`` pixels squared."""
    rows, columns = grid
    row, column = divmod(location, columns)
    return Tile(
        round(column * size / columns),
        round(row * size / rows),
        round((column + 1) * size / columns),
        round((row + 1) * size / rows),
    )


def mark_drawing(image: Image.Image) -> Image.Image:
    """The same image, marked as a drawing: its pixels are to stay crisp, however large it is shown."""
    image.info[_DRAWING] = True
    return image


def is_drawing(image: Image.Image) -> bool:
    """Whether an image was marked so; all others are photographs."""
    return image.info.get(_DRAWING) is True


def square(image: Image.Image, size: int) -> Image.Image:
    """The image as RGB, ``size`` pixels squared: a drawing keeps its crisp edges, a photograph its smooth ones."""
    rgb = image.convert("RGB")
    if is_drawing(image) and max(rgb.size) <= size:
        # Whole pixels first, then the average: all pixels come out equally large at any ratio.
        whole = (rgb.width * -(-size // rgb.width), rgb.height * -(-size // rgb.height))
        rgb = rgb.resize(whole, Image.Resampling.NEAREST)
        return rgb.resize((size, size), Image.Resampling.BOX)
    return rgb.resize((size, size), Image.Resampling.LANCZOS)


def to_image(pixels: Pixels) -> Image.Image:
    """Pixels as an RGB image."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def heat(weights: NDArray[np.float64], grid: tuple[int, int], size: int) -> Pixels:
    """Weights as a smooth map, float32 (size, size, 1) in [0, 1]."""
    small = Image.fromarray(weights.reshape(grid).astype(np.float32))
    heat = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return heat.clip(0, 1)[..., None]  # bicubic overshoots on both sides


def light(pixels: Pixels, heat: Pixels, colour: Colour, *, dark: float, tint: float) -> Pixels:
    """Darken to the share ``dark`` where ``heat`` is 0, and blend in the share ``tint`` of ``colour`` where it is 1."""
    lit = (1 - tint) * pixels + tint * np.array(colour, dtype=np.float32)
    return ((1 - heat) * dark * pixels + heat * lit).astype(np.float32)


def draw_box(picture: Image.Image, tile: Tile, colour: Colour = ACCENT) -> None:
    """Outline a tile in a light colour between two dark lines, which set it off from any image."""
    side = min(tile.right - tile.left, tile.bottom - tile.top)
    width = max(1, min(picture.width // 110, side // 6))
    left, top, right, bottom = tile.left, tile.top, tile.right - 1, tile.bottom - 1  # Pillow counts the last pixel in
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK)
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)
    draw.rectangle((left + width, top + width, right - width, bottom - width), outline=INK)


def load_font(size: int) -> FreeTypeFont:
    """Pillow's own font at ``size`` pixels."""
    return cast(FreeTypeFont, ImageFont.load_default(size=size))  # with a size it is never the bitmap font


def shorten(word: str, font: FreeTypeFont, width: float) -> str:
    """The word, or as much of it as fits in ``width`` pixels and an ellipsis."""
    if font.getlength(word) <= width:
        return word
    while word and font.getlength(word + "…") > width:
        word = word[:-1]
    return word + "…"


def wrap(words: Sequence[str], font: FreeTypeFont, width: float) -> list[list[str]]:
    """Words in lines of at most ``width`` pixels."""
    lines: list[list[str]] = []
    for word in (shorten(word, font, width) for word in words):
        if lines and font.getlength(" ".join([*lines[-1], word])) <= width:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def blend(ground: Pixels, cover: Pixels, colour: Colour) -> None:
    """Paint ``colour`` over ``ground`` (H, W, 3), in place, as opaque as ``cover`` (H, W, 1) in [0, 1] says."""
    ground += cover * (np.array(colour, dtype=np.float32) - ground)


def stroke(pixels: Pixels, start: tuple[float, float], end: tuple[float, float], width: float, opacity: float) -> None:
    """Draw a smooth line in the accent colour with a dark rim, in place; one of no length is a dot.

    Args:
        pixels: (H, W, 3).
        start: its first point, (x, y).
        end: its last point.
        width: of the line without its rim, in pixels.
        opacity: in [0, 1].
    """
    rim = max(1.0, 0.35 * width)
    reach = width / 2 + rim + 1
    (x0, y0), (x1, y1) = start, end
    left, right = max(0, int(min(x0, x1) - reach)), int(max(x0, x1) + reach) + 1
    top, bottom = max(0, int(min(y0, y1) - reach)), int(max(y0, y1) + reach) + 1
    ground = pixels[top:bottom, left:right]
    y, x = np.mgrid[top : top + ground.shape[0], left : left + ground.shape[1]].astype(np.float32)
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length if length else np.zeros_like(x)
    share = along.clip(0, 1)
    distance = np.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0))[..., None]
    for half, colour in ((width / 2 + rim, INK), (width / 2, ACCENT)):
        blend(ground, opacity * (half + 0.5 - distance).clip(0, 1), colour)  # a pixel on the rim is covered in part
