"""What an episode looks like: frames, a text grid, and the figure of Show, Attend and Tell.

It is handed an image, a grid of locations, weights and words. It does not know environments, agents or models.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glimpse_env.rendering.drawing import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    RULE,
    TEXT,
    Pixels,
    Tile,
    check_grid,
    check_size,
    check_weights,
    draw_box,
    heat,
    is_hard,
    light,
    load_font,
    shorten,
    square,
    stroke,
    tile_of,
    to_image,
    wrap,
)

CAPTION_LINES = 4  # twenty words of eight letters fit; a longer caption loses its beginning, not the newest word
SHADES = " ░▒▓█"
FADING, FAINTEST = 0.95, 0.6  # opacity of the trail: by glimpse that has passed since, and at least
LEGIBLE = 5.5  # pixels; a dot of at least this radius has room for its number


def render_frame(
    image: Image.Image,
    grid: tuple[int, int],
    *,
    weights: NDArray[Any] | None,
    trail: Sequence[int] = (),
    words: Sequence[str] = (),
    reward: float | None = None,
    title: str | None = None,
    size: int = 448,
) -> NDArray[np.uint8]:
    """One step as a picture: the image with its grid, past glimpses and the current one, the caption below.

    The shape depends on ``size`` alone, so the frames of an episode make a video; its height is a multiple of 16, which
    video encoders ask for. The image is squashed to a square, as the encoder sees it.

    Args:
        image: the picture being captioned, of any mode and size.
        grid: rows and columns of locations; location ``i`` is at row ``i // columns``, column ``i % columns``.
        weights: (L,) how much the current step looks at each location, on any scale. One positive weight is drawn as a
            box (hard attention), several as a heat map (soft), all zeros as a uniform heat map; None before the first
            glimpse.
        trail: locations of past glimpses, oldest first: a path, and on each place a dot with its number in the order
            of visits; the older, the fainter.
        words: the caption so far; the last word is highlighted.
        reward: written below the caption when given, its share of 1 drawn as a bar.
        title: written below the caption, such as the name of the agent.
        size: width of the frame and side of the image, in pixels.

    Returns:
        uint8 (H, ``size``, 3).

    Raises:
        ValueError: a grid, weight, location or size that cannot be drawn.
    """
    check_grid(grid)
    check_size("size", size, max(160, 4 * max(grid)), grid)
    seen = None if weights is None else check_weights(weights, grid)
    pixels = np.array(square(image, size), dtype=np.float32)
    if seen is not None and not is_hard(seen):
        pixels = light(pixels, heat(seen, grid, size), ACCENT, dark=0.35, tint=0.2)
    _draw_grid(pixels, grid)
    here = int(seen.argmax()) if seen is not None and is_hard(seen) else None
    looked = [*trail] if here is None else [*trail, here]
    picture = _draw_trail(pixels, _fixations(looked, grid), grid, here)
    if here is not None:
        draw_box(picture, tile_of(here, grid, size))
    strip = _caption_strip(words, reward, title, size)
    return np.concatenate([np.asarray(picture), np.asarray(strip)])


def render_text(
    image_id: str,
    grid: tuple[int, int],
    *,
    weights: NDArray[Any] | None,
    words: Sequence[str],
    reward: float | None,
    ended: bool,
) -> str:
    """One step as text: the image's name, the grid with the glimpse marked, the caption so far and the reward.

    Args:
        image_id: the name of the image, written on the first line.
        grid: rows and columns of locations.
        weights: (L,) as in :func:`render_frame`; one positive weight is marked ``■``, several are shaded `` ░▒▓█``.
        words: the caption so far.
        reward: of the step, or None when there was none.
        ended: whether the caption is complete; an unfinished one closes with ``…``.

    Returns:
        Lines without a newline at the end.

    Raises:
        ValueError: a grid or weight that cannot be drawn.
    """
    check_grid(grid)
    rows, columns = grid
    seen = None if weights is None else check_weights(weights, grid)
    # A character is about twice as tall as wide: two of them make a square cell.
    if seen is None or is_hard(seen):
        glimpse = None if seen is None else int(seen.argmax())
        cells = [" ■" if i == glimpse else " ·" for i in range(rows * columns)]
        margin = " "
    else:
        cells = [2 * SHADES[round(float(share) * (len(SHADES) - 1))] for share in seen]
        margin = ""
    lines = ["".join(cells[row * columns : (row + 1) * columns]) + margin for row in range(rows)]
    border = "─" * len(lines[0])
    caption = textwrap.wrap(" ".join([*words] if ended else [*words, "…"]), 72)
    status = f"{len(words)} word{'' if len(words) == 1 else 's'}{', ended' if ended else ''}"
    if reward is not None:
        status += f", reward {reward:.3f}"
    return "\n".join([image_id, f"┌{border}┐", *(f"│{line}│" for line in lines), f"└{border}┘", *caption, status])


def render_panels(
    image: Image.Image,
    grid: tuple[int, int],
    weights: NDArray[Any],
    words: Sequence[str],
    *,
    title: str | None = None,
    panel_size: int = 224,
    columns: int = 6,
) -> Image.Image:
    """The figure of Show, Attend and Tell: the image, then a panel a word showing where the word was looked up.

    Args:
        image: the picture, of any mode and size.
        grid: rows and columns of locations.
        weights: (T, L) a row a word, drawn as in :func:`render_frame` on the darkened image.
        words: the T words of the caption.
        title: a line above the caption, such as the name of the agent.
        panel_size: side of a panel, in pixels.
        columns: panels in a row, at most.

    Returns:
        An RGB image of T + 1 panels under a strip with the whole caption.

    Raises:
        ValueError: a grid, weight, number of words or size that cannot be drawn.
    """
    check_grid(grid)
    check_size("panel_size", panel_size, max(64, 4 * max(grid)), grid)
    if columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1 panel in a row")
    if len(weights) != len(words):
        raise ValueError(f"weights has {len(weights)} rows for {len(words)} words; expected one row a word")
    plain = square(image, panel_size)
    panels = [plain, *(_panel(plain, grid, check_weights(row, grid)) for row in weights)]

    columns = min(columns, len(panels))
    gap, label_size = max(4, panel_size // 16), max(11, panel_size // 11)
    font, large = load_font(label_size), load_font(round(1.2 * label_size))
    label_height, line_height = round(1.6 * label_size), round(1.7 * label_size)
    width = columns * panel_size + (columns + 1) * gap
    titles = [] if title is None else wrap(title.split(), font, width - 2 * gap)
    lines = wrap(words, large, width - 2 * gap)
    header = gap + label_height * len(titles) + line_height * len(lines)
    rows = -(-len(panels) // columns)
    figure = Image.new("RGB", (width, header + rows * (label_height + panel_size) + (rows - 1) * gap // 2 + gap), PAPER)
    draw = ImageDraw.Draw(figure)
    for i, line in enumerate(titles):
        draw.text((gap, gap + (i + 0.5) * label_height), " ".join(line), fill=MUTED, font=font, anchor="lm")
    for i, line in enumerate(lines):
        middle = gap + label_height * len(titles) + (i + 0.5) * line_height
        draw.text((gap, middle), " ".join(line), fill=INK, font=large, anchor="lm")
    for i, panel in enumerate(panels):
        left = gap + (i % columns) * (panel_size + gap)
        top = header + (i // columns) * (label_height + panel_size + gap // 2)
        if i > 0:
            label = shorten(words[i - 1], font, panel_size)
            draw.text((left + panel_size / 2, top + label_height / 2), label, fill=INK, font=font, anchor="mm")
        figure.paste(panel, (left, top + label_height))
    return figure


def _draw_grid(pixels: Pixels, grid: tuple[int, int]) -> None:
    """Draw faint lines between the tiles, in place: lighter on dark ground, darker on light, so they show on any."""
    size = len(pixels)
    for ground, parts in ((pixels, grid[0]), (pixels.swapaxes(0, 1), grid[1])):
        lines = [round(i * size / parts) for i in range(1, parts)]
        toward = np.where(ground[lines].mean(axis=2, keepdims=True) > 110, 0.0, 255.0)
        ground[lines] += 0.16 * (toward - ground[lines])


class _Fixation(NamedTuple):
    """A stay at one location: which in the order of the caption, from 1, and how many glimpses ago it ended."""

    location: int
    number: int
    age: int


def _fixations(looked: Sequence[int], grid: tuple[int, int]) -> list[_Fixation]:
    """Glimpses, oldest first, as stays."""
    locations = grid[0] * grid[1]
    stays: list[_Fixation] = []
    for age, location in zip(range(len(looked) - 1, -1, -1), looked, strict=True):
        if not 0 <= location < locations:
            raise ValueError(f"trail has location {location}; the grid has locations 0 to {locations - 1}")
        if stays and stays[-1].location == location:
            stays[-1] = stays[-1]._replace(age=age)
        else:
            stays.append(_Fixation(location, len(stays) + 1, age))
    return stays


def _draw_trail(pixels: Pixels, stays: Sequence[_Fixation], grid: tuple[int, int], here: int | None) -> Image.Image:
    """Draw a path through the stays and a numbered dot on each; a place seen twice keeps its latest number.

    Dots stand in the top left of their tiles, so that what was looked at can be seen.

    Args:
        pixels: (H, W, 3), painted on.
        stays: oldest first; the older, the fainter.
        grid: rows and columns of locations.
        here: the location that is looked at now: it has no dot, and the path ends at its edge.

    Returns:
        The picture.
    """
    size = len(pixels)
    side = size / max(grid)
    radius = max(1.5, 0.13 * side)
    tiles = [tile_of(stay.location, grid, size) for stay in stays]
    dots = [(tile.left + 0.27 * side, tile.top + 0.27 * side) for tile in tiles]
    opacities = [max(FAINTEST, FADING**stay.age) for stay in stays]
    for i in range(len(stays) - 1):
        end = _edge(dots[i], dots[i + 1], tiles[i + 1]) if stays[i + 1].location == here else dots[i + 1]
        start = _edge(dots[i + 1], dots[i], tiles[i]) if stays[i].location == here else dots[i]
        stroke(pixels, start, end, max(1.0, 0.4 * radius), opacities[i])
    latest = {stay.location: i for i, stay in enumerate(stays) if stay.location != here}
    for i in latest.values():
        stroke(pixels, dots[i], dots[i], 2 * radius, opacities[i])
    picture = to_image(pixels)
    if radius >= LEGIBLE:
        draw, font = ImageDraw.Draw(picture), load_font(round(1.5 * radius))
        for i in latest.values():
            x, y = dots[i]
            draw.text((x + 0.5, y + 0.5), str(stays[i].number), fill=INK, font=font, anchor="mm")
    return picture


def _edge(start: tuple[float, float], end: tuple[float, float], tile: Tile) -> tuple[float, float]:
    """Where a line from outside a tile to a point inside it meets the tile."""
    (x0, y0), (x1, y1) = start, end
    outside = 0.0
    for low, high, first, last in ((tile.left, tile.right, x0, x1), (tile.top, tile.bottom, y0, y1)):
        if first != last:
            outside = max(outside, min((low - first) / (last - first), (high - first) / (last - first)))
    return x0 + outside * (x1 - x0), y0 + outside * (y1 - y0)


def _panel(plain: Image.Image, grid: tuple[int, int], weights: NDArray[np.float64]) -> Image.Image:
    """The image with one word's glimpse lit: a box on a hard one, white light on a soft one."""
    size = plain.width
    pixels = np.asarray(plain, dtype=np.float32)
    if not is_hard(weights):
        return to_image(light(pixels, heat(weights, grid, size), PAPER, dark=0.35, tint=0.4))
    tile = tile_of(int(weights.argmax()), grid, size)
    inside = np.zeros((size, size, 1), dtype=np.float32)
    inside[tile.top : tile.bottom, tile.left : tile.right] = 1
    panel = to_image(light(pixels, inside, PAPER, dark=0.45, tint=0.0))
    draw_box(panel, tile)
    return panel


def _caption_strip(words: Sequence[str], reward: float | None, title: str | None, width: int) -> Image.Image:
    """The caption so far with its last word highlighted, and a line of numbers; as tall for one word as for twenty."""
    text_size = max(10, width // 22)
    margin, line_height, small_size = text_size * 4 // 5, round(1.3 * text_size), max(9, round(0.75 * text_size))
    least = 2 * margin + CAPTION_LINES * line_height + 2 * small_size
    height = -(-(width + least) // 16) * 16 - width
    strip = Image.new("RGB", (width, height), INK)
    draw = ImageDraw.Draw(strip)
    font, small = load_font(text_size), load_font(small_size)

    lines = wrap(words, font, width - 2 * margin)
    if len(lines) > CAPTION_LINES:  # whole lines go, so that the words left on screen stay where they were
        lines = lines[-CAPTION_LINES:]
        lines[0][0] = "…"
        while font.getlength(" ".join(lines[0])) > width - 2 * margin:
            del lines[0][1]
    gap = font.getlength(" ")
    for i, line in enumerate(lines):
        x, middle = float(margin), margin + (i + 0.5) * line_height
        for j, word in enumerate(line):
            newest = i == len(lines) - 1 and j == len(line) - 1
            draw.text((x, middle), word, fill=ACCENT if newest else TEXT, font=font, anchor="lm")
            x += font.getlength(word) + gap

    middle = height - 0.6 * margin - small_size / 2
    rule, thick = round(height - 2.3 * small_size), max(1, width // 150)
    draw.rectangle((margin, rule - thick, width - margin - 1, rule), fill=RULE)
    count = "no glimpse yet" if not words else "1 word" if len(words) == 1 else f"{len(words)} words"
    right = width - margin
    if reward is not None:
        filled = round((width - 2 * margin) * min(max(reward, 0.0), 1.0))
        if filled:
            draw.rectangle((margin, rule - thick, margin + filled - 1, rule), fill=ACCENT)
        value = f"{reward:.3f}"
        draw.text((right, middle), value, fill=TEXT, font=small, anchor="rm")
        right -= round(small.getlength(value + " "))
        draw.text((right, middle), "reward", fill=MUTED, font=small, anchor="rm")
        right -= round(small.getlength("reward  "))
    told = count if title is None else f"{title} · {count}"
    draw.text((margin, middle), shorten(told, small, right - margin), fill=MUTED, font=small, anchor="lm")
    return strip
