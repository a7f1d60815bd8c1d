"""The panel beside the picture when a person plays: the rewards on an image, and the keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from glimpse_env.core.location_grid import Box
from glimpse_env.rendering.drawing import ACCENT, INK, MUTED, RULE, TEXT, Colour, draw_bar, load_font, shorten, wrap

_AGENT_COLOUR: Colour = (120, 160, 200)  # bars of agents; differs from the accent in lightness, too


class Row(NamedTuple):
    """A line of the scoreboard, of the player or an agent."""

    name: str
    reward: float  # drawn as a bar, full at 1
    is_player: bool = False


def render_scoreboard(
    title: str, rows: Sequence[Row], text: str, keys: Sequence[tuple[str, str]], *, width: int, height: int
) -> Image.Image:
    """Draw a panel of ``width`` × ``height`` pixels: ``title``, rows in the given order, ``text``, and what keys do."""
    panel = Image.new("RGB", (width, height), INK)
    draw = ImageDraw.Draw(panel)
    size = max(10, width // 21)
    font, small = load_font(size), load_font(round(0.85 * size))
    line_height, right = round(1.5 * size), width - size
    draw.line((0, 0, 0, height), fill=RULE)
    draw.text((size, size), shorten(title, font, right - size), fill=TEXT, font=font)
    y, bottom = size + 2 * line_height, height - size - line_height * len(keys)
    for row in rows:
        _draw_row(draw, row, small, Box(size, y, right, y + round(1.2 * size)))
        y += round(1.9 * size)
    y += line_height // 2
    for words in wrap(text.split(), small, right - size):
        if y + 2 * size < bottom:  # lines that do not fit are left out
            draw.text((size, y), " ".join(words), fill=MUTED, font=small)
        y += round(1.25 * size)
    draw.line((size, bottom - line_height // 2, right, bottom - line_height // 2), fill=RULE)
    for i, (key, meaning) in enumerate(keys):
        draw.text((size, bottom + i * line_height), key, fill=TEXT, font=small)
        draw.text((right, bottom + i * line_height), meaning, fill=MUTED, font=small, anchor="ra")
    return panel


def _draw_row(draw: ImageDraw.ImageDraw, row: Row, font: FreeTypeFont, box: Box) -> None:
    """Draw name and reward in a box, and the bar below it."""
    colour, value = ACCENT if row.is_player else TEXT, f"{row.reward:.3f}"
    name = shorten(row.name, font, box.right - box.left - font.getlength(value + "  "))
    draw.text((box.left, box.top), name, fill=colour, font=font)
    draw.text((box.right, box.top), value, fill=colour, font=font, anchor="ra")
    bar = Box(box.left, box.bottom, box.right, box.bottom + 4)
    draw_bar(draw, bar, row.reward, ACCENT if row.is_player else _AGENT_COLOUR)
