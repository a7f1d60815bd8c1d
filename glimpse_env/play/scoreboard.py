"""The panel beside the picture when a person plays: what to press, and who earned what.

It is handed text and numbers. It does not know games.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from glimpse_env.rendering.drawing import ACCENT, INK, MUTED, RULE, TEXT, Colour, load_font, shorten, wrap

REST: Colour = (120, 160, 200)  # bars of those who are not the player: told from the accent by lightness, too


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        name: who.
        reward: what it earned; drawn as a share of 1.
        own: whether it is the player's.
    """

    name: str
    reward: float
    own: bool = False


def render_board(
    title: str, table: Sequence[Row], said: str | None, keys: Sequence[tuple[str, str]], *, width: int, height: int
) -> Image.Image:
    """Draw the panel.

    Args:
        title: its first line.
        table: from the best to the worst; empty while the caption is not complete.
        said: a sentence below the table, such as what people say about the image.
        keys: what to press, and what it does.
        width: pixels.
        height: pixels.
    """
    panel = Image.new("RGB", (width, height), INK)
    draw = ImageDraw.Draw(panel)
    size = max(10, width // 21)
    font, small = load_font(size), load_font(round(0.85 * size))
    margin, line = size, round(1.5 * size)
    draw.line((0, 0, 0, height), fill=RULE)
    draw.text((margin, margin), shorten(title, font, width - 2 * margin), fill=TEXT, font=font)
    y, foot = margin + 2 * line, height - margin - line * len(keys)
    for row in table:
        colour = ACCENT if row.own else TEXT
        value = f"{row.reward:.3f}"
        room = width - 2 * margin
        name = shorten(row.name, small, room - small.getlength(value + "  "))
        draw.text((margin, y), name, fill=colour, font=small)
        draw.text((width - margin, y), value, fill=colour, font=small, anchor="ra")
        low = y + round(1.2 * size)
        draw.rectangle((margin, low, width - margin - 1, low + 3), fill=RULE)
        filled = round(room * min(max(row.reward, 0.0), 1.0))
        if filled:
            draw.rectangle((margin, low, margin + filled - 1, low + 3), fill=ACCENT if row.own else REST)
        y += round(1.9 * size)
    if said:
        y += line // 2
        for words in wrap(said.split(), small, width - 2 * margin):
            if y + 2 * size < foot:  # what has no room is left out
                draw.text((margin, y), " ".join(words), fill=MUTED, font=small)
            y += round(1.25 * size)
    y = foot
    draw.line((margin, y - line // 2, width - margin, y - line // 2), fill=RULE)
    for key, meaning in keys:
        draw.text((margin, y), key, fill=TEXT, font=small)
        draw.text((width - margin, y), meaning, fill=MUTED, font=small, anchor="ra")
        y += line
    return panel
