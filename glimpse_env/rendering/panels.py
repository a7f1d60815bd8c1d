"""The figure of Show, Attend and Tell: an image, and for each word a panel with its attention weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glimpse_env.rendering import drawing, tiles
from glimpse_env.rendering.drawing import Size
from glimpse_env.rendering.inputs import Picture
from glimpse_env.rendering.tiles import AnyGrid, Grid


def render_panels(
    image: Picture,
    grid: AnyGrid,
    weights: NDArray[Any],
    words: Sequence[str],
    *,
    title: str | None = None,
    panel_size: int | Size = 224,
    columns: int = 6,
) -> Image.Image:
    """The figure of Show, Attend and Tell: an RGB image of T + 1 panels under a strip with the caption.

    Args:
        image: as in :func:`render_frame`.
        grid: as in :func:`render_frame`.
        weights: (T, L) a row a word, drawn as in :func:`render_frame` on the darkened image.
        words: the T words of the caption.
        title: a line above the caption, such as the name of the agent.
        panel_size: size of a panel, as in :func:`render_frame`.
        columns: panels in a row, at most.

    Raises:
        ValueError: a grid, weight, number of words or size that cannot be drawn.
    """
    height, width = tiles.check_size("panel_size", panel_size, 64, grid)
    grid = tiles.check_grid(grid)
    if columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1 panel in a row")
    if len(weights) != len(words):
        raise ValueError(f"weights has {len(weights)} rows for {len(words)} words; expected one row a word")
    plain = drawing.resize(image, (height, width))
    panels = [plain, *(_panel(plain, grid, tiles.check_weights(row, grid)) for row in weights)]
    columns = min(columns, len(panels))
    gap, label_size = max(4, width // 16), max(11, width // 11)
    header = _header(title, words, columns * width + (columns + 1) * gap, gap, label_size)
    return _arrange(header, panels, words, columns, gap, label_size)


def _header(title: str | None, words: Sequence[str], width: int, gap: int, label_size: int) -> Image.Image:
    """A strip with the title and the caption, as tall as they need."""
    font, large = drawing.load_font(label_size), drawing.load_font(round(1.2 * label_size))
    label_height, line_height = round(1.6 * label_size), round(1.7 * label_size)
    titles = drawing.wrap((title or "").split(), font, width - 2 * gap)
    lines = drawing.wrap(words, large, width - 2 * gap)
    top = gap + label_height * len(titles)
    strip = Image.new("RGB", (width, top + line_height * len(lines)), drawing.PAPER)
    draw = ImageDraw.Draw(strip)
    for i, line in enumerate(titles):
        draw.text((gap, gap + (i + 0.5) * label_height), " ".join(line), fill=drawing.MUTED, font=font, anchor="lm")
    for i, line in enumerate(lines):
        draw.text((gap, top + (i + 0.5) * line_height), " ".join(line), fill=drawing.INK, font=large, anchor="lm")
    return strip


def _arrange(
    header: Image.Image, panels: Sequence[Image.Image], words: Sequence[str], columns: int, gap: int, label_size: int
) -> Image.Image:
    """The panels in rows below the header, each but the first under its word."""
    width, height = panels[0].size
    label_height, font = round(1.6 * label_size), drawing.load_font(label_size)
    rows = -(-len(panels) // columns)
    bottom = header.height + rows * (label_height + height) + (rows - 1) * gap // 2 + gap
    figure = Image.new("RGB", (header.width, bottom), drawing.PAPER)
    figure.paste(header)
    draw = ImageDraw.Draw(figure)
    for i, panel in enumerate(panels):
        x = gap + i % columns * (width + gap)
        y = header.height + i // columns * (label_height + height + gap // 2)
        if i > 0:
            label = drawing.shorten(words[i - 1], font, width)
            draw.text((x + width / 2, y + label_height / 2), label, fill=drawing.INK, font=font, anchor="mm")
        figure.paste(panel, (x, y + label_height))
    return figure


def _panel(plain: Image.Image, grid: Grid, weights: NDArray[np.float64]) -> Image.Image:
    """The image with the attention of one word: a box around a hard glimpse, white light on soft weights."""
    pixels, size = np.asarray(plain, dtype=np.float32), (plain.height, plain.width)
    location = tiles.hard_location(weights)
    if location is None:
        mask = tiles.heat_map(weights, grid, size)
        return drawing.to_image(drawing.light(pixels, mask, drawing.PAPER, dark=0.35, tint=0.4))
    box = tiles.location_box(location, grid, size)
    mask = np.zeros((*size, 1), dtype=np.float32)
    mask[box.top : box.bottom, box.left : box.right] = 1
    panel = drawing.to_image(drawing.light(pixels, mask, drawing.PAPER, dark=0.45, tint=0.0))
    drawing.draw_box(panel, box)
    return panel
