"""One step of an episode as a picture or as text: the image, its grid, the glimpses, the caption and the reward."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glimpse_env.core.location_grid import Box
from glimpse_env.rendering import drawing, tiles
from glimpse_env.rendering.drawing import Pixels, Size
from glimpse_env.rendering.inputs import Picture
from glimpse_env.rendering.tiles import AnyGrid, Grid

PICTURE_WIDTH = 448  # pixels of the image in a frame
SHADES = " ░▒▓█"
_CAPTION_LINES = 4  # twenty words of eight letters fit; a longer caption loses its first lines
_TRAIL_DECAY, _TRAIL_MIN_OPACITY = 0.95, 0.6  # opacity of the trail: factor per later glimpse, and at least
_NUMBERED_RADIUS = 5.5  # pixels; least radius of a dot that has room for its number


def render_frame(
    image: Picture,
    grid: AnyGrid,
    *,
    weights: NDArray[Any] | None,
    trail: Sequence[int] = (),
    words: Sequence[str] = (),
    reward: float | None = None,
    title: str | None = None,
    size: int | Size = PICTURE_WIDTH,
) -> NDArray[np.uint8]:
    """One step as a picture, uint8 (H, W, 3): the image with its grid and glimpses, and the caption below.

    Frames of one ``size`` make a video: they have one shape, and a height that is a multiple of 16.

    Args:
        image: an image of any mode and size, or uint8 (H, W) or (H, W, 3); stretched to ``size``.
        grid: a ``LocationGrid``; or (rows, columns) of locations, (columns,) of a strip, or (frames, rows, columns) of
            a clip.
        weights: (L,) attention weights of the current step, on any scale; None before the first glimpse. One positive
            weight is drawn as a box (hard attention), several as a heat map (soft), all zeros as a uniform heat map.
        trail: locations of past glimpses, oldest first: a path with a numbered dot at each, the older the fainter.
        words: the caption so far; the last word is highlighted.
        reward: written below the caption when given, and drawn as a bar, full at 1.
        title: written below the caption, such as the name of the agent.
        size: (height, width) of the image in the frame, in pixels; a number is the width, and the height follows from
            the cells of a ``LocationGrid``, else it is the same.

    Raises:
        ValueError: a grid, weight, location or size that cannot be drawn.
    """
    size = tiles.check_size("size", size, 160, grid)
    grid = tiles.check_grid(grid)
    shares = None if weights is None else tiles.check_weights(weights, grid)
    current = tiles.hard_location(shares)
    pixels = np.array(drawing.resize(image, size), dtype=np.float32)
    if shares is not None and current is None:
        pixels = drawing.light(pixels, tiles.heat_map(shares, grid, size), drawing.ACCENT, dark=0.35, tint=0.2)
    tiles.draw_grid(pixels, grid)
    glimpses = [*trail] if current is None else [*trail, current]
    picture = _draw_trail(pixels, _fixations(glimpses, grid), grid, current)
    if current is not None:
        drawing.draw_box(picture, tiles.location_box(current, grid, size))
    strip = _caption_strip(words, reward, title, size, glimpsed=weights is not None)
    return np.concatenate([np.asarray(picture), np.asarray(strip)])


def render_text(
    image_id: str,
    grid: AnyGrid,
    *,
    weights: NDArray[Any] | None,
    words: Sequence[str],
    reward: float | None,
    ended: bool,
) -> str:
    """One step as text: the image's name, the grid with the glimpse marked, the caption so far and the reward.

    ``grid`` and ``weights`` are as in :func:`render_frame`: one positive weight is marked ``■``, several are shaded
    `` ░▒▓█``. A caption that has not ``ended`` closes with ``…``. The text has no newline at the end.

    Raises:
        ValueError: a grid or weight that cannot be drawn.
    """
    rows, columns = grid = tiles.check_grid(grid)
    shares = None if weights is None else tiles.check_weights(weights, grid)
    current = tiles.hard_location(shares)
    # A character is about twice as tall as wide: two of them make a square cell.
    if shares is None or current is not None:
        cells, margin = [" ■" if i == current else " ·" for i in range(rows * columns)], " "
    else:
        cells, margin = [2 * SHADES[round(float(share) * (len(SHADES) - 1))] for share in shares], ""
    lines = ["".join(cells[row * columns : (row + 1) * columns]) + margin for row in range(rows)]
    border = "─" * len(lines[0])
    caption = textwrap.wrap(" ".join([*words] if ended else [*words, "…"]), 72)
    status = f"{len(words)} word{'' if len(words) == 1 else 's'}{', ended' if ended else ''}"
    if reward is not None:
        status += f", reward {reward:.3f}"
    return "\n".join([image_id, f"┌{border}┐", *(f"│{line}│" for line in lines), f"└{border}┘", *caption, status])


class _Fixation(NamedTuple):
    """Consecutive glimpses of one location: its number in the caption, from 1, and how many glimpses ago it ended."""

    location: int
    number: int
    age: int


def _fixations(glimpses: Sequence[int], grid: Grid) -> list[_Fixation]:
    locations = grid[0] * grid[1]
    fixations: list[_Fixation] = []
    for age, location in zip(range(len(glimpses) - 1, -1, -1), glimpses, strict=True):
        if not 0 <= location < locations:
            raise ValueError(f"trail has location {location}; the grid has locations 0 to {locations - 1}")
        if fixations and fixations[-1].location == location:
            fixations[-1] = fixations[-1]._replace(age=age)
        else:
            fixations.append(_Fixation(location, len(fixations) + 1, age))
    return fixations


def _draw_trail(pixels: Pixels, fixations: Sequence[_Fixation], grid: Grid, current: int | None) -> Image.Image:
    """Draw a path through the fixations and a numbered dot on each; a location with two keeps its latest number.

    Dots are in the top left of their tiles, so that they hide little of the image. The current location has no dot, and
    the path ends at its edge.
    """
    height, width = pixels.shape[:2]
    side = min(height / grid[0], width / grid[1])
    radius = max(1.5, 0.13 * side)
    boxes = [tiles.location_box(fixation.location, grid, (height, width)) for fixation in fixations]
    dots = [(box.left + 0.27 * side, box.top + 0.27 * side) for box in boxes]
    opacities = [max(_TRAIL_MIN_OPACITY, _TRAIL_DECAY**fixation.age) for fixation in fixations]
    for i in range(len(fixations) - 1):
        end = _edge(dots[i], dots[i + 1], boxes[i + 1]) if fixations[i + 1].location == current else dots[i + 1]
        start = _edge(dots[i + 1], dots[i], boxes[i]) if fixations[i].location == current else dots[i]
        drawing.draw_line(pixels, start, end, max(1.0, 0.4 * radius), opacities[i])
    latest = {fixation.location: i for i, fixation in enumerate(fixations) if fixation.location != current}
    for i in latest.values():
        drawing.draw_line(pixels, dots[i], dots[i], 2 * radius, opacities[i])
    picture = drawing.to_image(pixels)
    if radius >= _NUMBERED_RADIUS:
        draw, font = ImageDraw.Draw(picture), drawing.load_font(round(1.5 * radius))
        for i in latest.values():
            x, y = dots[i]
            draw.text((x + 0.5, y + 0.5), str(fixations[i].number), fill=drawing.INK, font=font, anchor="mm")
    return picture


def _edge(start: tuple[float, float], end: tuple[float, float], box: Box) -> tuple[float, float]:
    """Where a line from outside a box to a point inside it meets the box."""
    (x0, y0), (x1, y1) = start, end
    outside = 0.0
    for low, high, first, last in ((box.left, box.right, x0, x1), (box.top, box.bottom, y0, y1)):
        if first != last:
            outside = max(outside, min((low - first) / (last - first), (high - first) / (last - first)))
    return x0 + outside * (x1 - x0), y0 + outside * (y1 - y0)


def _caption_strip(
    words: Sequence[str], reward: float | None, title: str | None, picture_size: Size, glimpsed: bool
) -> Image.Image:
    """The caption so far with its last word highlighted, and a line of numbers; as tall for one word as for twenty."""
    picture_height, width = picture_size
    text_size = max(10, width // 22)
    margin, line_height, small_size = text_size * 4 // 5, round(1.3 * text_size), max(9, round(0.75 * text_size))
    least = 2 * margin + _CAPTION_LINES * line_height + 2 * small_size
    height = -(-(picture_height + least) // 16) * 16 - picture_height
    strip = Image.new("RGB", (width, height), drawing.INK)
    draw = ImageDraw.Draw(strip)
    font, small = drawing.load_font(text_size), drawing.load_font(small_size)

    lines = drawing.wrap(words, font, width - 2 * margin)
    if len(lines) > _CAPTION_LINES:  # lines are cut off as a unit, so that the remaining words do not move
        lines = lines[-_CAPTION_LINES:]
        lines[0][0] = "…"
        while font.getlength(" ".join(lines[0])) > width - 2 * margin:
            del lines[0][1]
    gap = font.getlength(" ")
    for i, line in enumerate(lines):
        x, middle = float(margin), margin + (i + 0.5) * line_height
        for j, word in enumerate(line):
            newest = i == len(lines) - 1 and j == len(line) - 1
            draw.text((x, middle), word, fill=drawing.ACCENT if newest else drawing.TEXT, font=font, anchor="lm")
            x += font.getlength(word) + gap

    middle, right = height - 0.6 * margin - small_size / 2, width - margin
    bar = round(height - 2.3 * small_size)
    drawing.draw_bar(draw, Box(margin, bar - max(1, width // 150), right, bar + 1), reward or 0.0)
    if reward is not None:
        for text, fill, space in ((f"{reward:.3f}", drawing.TEXT, " "), ("reward", drawing.MUTED, "  ")):
            draw.text((right, middle), text, fill=fill, font=small, anchor="rm")
            right -= round(small.getlength(text + space))
    count = "no glimpse yet" if not (words or glimpsed) else "1 word" if len(words) == 1 else f"{len(words)} words"
    label = drawing.shorten(count if title is None else f"{title} · {count}", small, right - margin)
    draw.text((margin, middle), label, fill=drawing.MUTED, font=small, anchor="lm")
    return strip
