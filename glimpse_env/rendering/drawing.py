"""Drawing primitives: colours, fonts, text wrapping, boxes, bars, lines and lighting on RGB pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from glimpse_env.core.location_grid import Box
from glimpse_env.rendering.inputs import Picture, as_picture

Colour = tuple[int, int, int]
Pixels = NDArray[np.float32]  # (H, W, channels) in [0, 255] while layers are blended; (H, W, 1) in [0, 1] for masks
Size = tuple[int, int]  # (height, width) in pixels
Point = tuple[float, float]  # (x, y) in pixels

ACCENT: Colour = (255, 209, 102)
INK: Colour = (20, 22, 28)
PAPER: Colour = (255, 255, 255)
TEXT: Colour = (236, 237, 240)
MUTED: Colour = (138, 143, 156)
RULE: Colour = (46, 49, 58)

_DRAWING = "glimpse_env.rendering.drawing"  # key in the info of an image that is marked as a drawing


def mark_drawing(image: Image.Image) -> Image.Image:
    """The same image, marked as a drawing, whose pixels stay crisp when it is enlarged."""
    image.info[_DRAWING] = True
    return image


def is_drawing(image: Picture) -> bool:
    """Whether an image is marked as a drawing; all others are photographs."""
    return isinstance(image, Image.Image) and image.info.get(_DRAWING) is True


def resize(image: Picture, size: Size) -> Image.Image:
    """The image as RGB, stretched to ``size``: an enlarged drawing keeps crisp edges, a photograph smooth ones."""
    rgb = as_picture(image)
    height, width = size
    if is_drawing(image) and rgb.height <= height and rgb.width <= width:
        # Scaled up by an integer first, then averaged: all pixels come out equally large at any ratio.
        enlarged = (rgb.width * -(-width // rgb.width), rgb.height * -(-height // rgb.height))
        return rgb.resize(enlarged, Image.Resampling.NEAREST).resize((width, height), Image.Resampling.BOX)
    return rgb.resize((width, height), Image.Resampling.LANCZOS)


def to_image(pixels: Pixels) -> Image.Image:
    """Pixels as an RGB image."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def light(pixels: Pixels, mask: Pixels, colour: Colour, *, dark: float, tint: float) -> Pixels:
    """Darken to the share ``dark`` where ``mask`` is 0, and blend in the share ``tint`` of ``colour`` where it is 1."""
    lit = (1 - tint) * pixels + tint * np.array(colour, dtype=np.float32)
    return ((1 - mask) * dark * pixels + mask * lit).astype(np.float32)


def draw_box(picture: Image.Image, box: Box, colour: Colour = ACCENT) -> None:
    """Outline a box in a light colour between two dark lines, which set it off from any image."""
    width = max(1, min(picture.width // 110, min(box.right - box.left, box.bottom - box.top) // 6))
    x0, y0, x1, y1 = box.left, box.top, box.right - 1, box.bottom - 1  # Pillow includes the last pixel
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=INK)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
    draw.rectangle((x0 + width, y0 + width, x1 - width, y1 - width), outline=INK)


def draw_bar(draw: ImageDraw.ImageDraw, box: Box, share: float, colour: Colour = ACCENT) -> None:
    """Draw a bar that is filled from the left to ``share`` of its width, clipped to [0, 1]."""
    x0, y0, x1, y1 = box
    draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=RULE)
    filled = round((x1 - x0) * min(max(share, 0.0), 1.0))
    if filled:
        draw.rectangle((x0, y0, x0 + filled - 1, y1 - 1), fill=colour)


def load_font(size: int) -> FreeTypeFont:
    """Pillow's default font at ``size`` pixels."""
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


def draw_line(pixels: Pixels, start: Point, end: Point, width: float, opacity: float) -> None:
    """Draw a smooth line between two points on (H, W, 3), in place; a line of length 0 is a dot.

    The line has the accent colour, a dark rim outside its ``width`` in pixels, and an ``opacity`` in [0, 1].
    """
    rim = max(1.0, 0.35 * width)
    reach = width / 2 + rim + 1
    (x0, y0), (x1, y1) = start, end
    first_column, last_column = max(0, int(min(x0, x1) - reach)), int(max(x0, x1) + reach) + 1
    first_row, last_row = max(0, int(min(y0, y1) - reach)), int(max(y0, y1) + reach) + 1
    patch = pixels[first_row:last_row, first_column:last_column]
    rows, columns = patch.shape[:2]
    y, x = np.mgrid[first_row : first_row + rows, first_column : first_column + columns].astype(np.float32)
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2
    along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length if length else np.zeros_like(x)
    share = along.clip(0, 1)
    distance = np.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0))[..., None]
    for half, colour in ((width / 2 + rim, INK), (width / 2, ACCENT)):
        cover = opacity * (half + 0.5 - distance).clip(0, 1)  # pixels on the rim are covered partially
        patch += cover * (np.array(colour, dtype=np.float32) - patch)
