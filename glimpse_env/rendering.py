"""What an episode looks like: frames, a text grid, the figure of Show, Attend and Tell, and a window to show frames in.

It is handed an image, a grid of locations, weights and words. It does not know environments, agents or models.
"""

from __future__ import annotations

import textwrap
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

CAPTION_LINES = 4  # twenty words of eight letters fit; a longer caption loses its beginning, not the newest word
DRAWN = 128  # an image of at most so many pixels a side is a drawing with crisp edges, a larger one a photograph
SHADES = " ░▒▓█"


class _Tile(NamedTuple):
    """Pixels of one location: left and top belong to it, right and bottom are the first that do not."""

    left: int
    top: int
    right: int
    bottom: int


def render_frame(
    image: Image.Image,
    grid: tuple[int, int],
    *,
    weights: NDArray[Any] | None,
    trail: Sequence[int] = (),
    words: Sequence[str] = (),
    reward: float | None = None,
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
        trail: locations of past glimpses, oldest first; the older, the fainter.
        words: the caption so far; the last word is highlighted.
        reward: written beside the caption when given.
        size: width of the frame and side of the image, in pixels.

    Returns:
        uint8 (H, ``size``, 3).

    Raises:
        ValueError: a grid, weight, location or size that cannot be drawn.
    """
    _check_grid(grid)
    _check_size("size", size, max(160, 4 * max(grid)), grid)
    seen = None if weights is None else _check_weights(weights, grid)
    pixels = np.array(_square(image, size), dtype=np.float32)
    if seen is not None and not _is_hard(seen):
        pixels = _light(pixels, _heat(seen, grid, size), ACCENT, dark=0.35, tint=0.2)
    _draw_grid(pixels, grid)
    _mark_trail(pixels, trail, grid)
    picture = _to_image(pixels)
    if seen is not None and _is_hard(seen):
        _draw_box(picture, _tile(int(seen.argmax()), grid, size))
    strip = _caption_strip(words, reward, size)
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
    _check_grid(grid)
    rows, columns = grid
    seen = None if weights is None else _check_weights(weights, grid)
    # A character is about twice as tall as wide: two of them make a square cell.
    if seen is None or _is_hard(seen):
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
    _check_grid(grid)
    _check_size("panel_size", panel_size, max(64, 4 * max(grid)), grid)
    if columns < 1:
        raise ValueError(f"columns is {columns}; expected at least 1 panel in a row")
    if len(weights) != len(words):
        raise ValueError(f"weights has {len(weights)} rows for {len(words)} words; expected one row a word")
    plain = _square(image, panel_size)
    panels = [plain, *(_panel(plain, grid, _check_weights(row, grid)) for row in weights)]

    columns = min(columns, len(panels))
    gap, label_size = max(4, panel_size // 16), max(11, panel_size // 11)
    font, large = _font(label_size), _font(round(1.2 * label_size))
    label_height, line_height = round(1.6 * label_size), round(1.7 * label_size)
    width = columns * panel_size + (columns + 1) * gap
    titles = [] if title is None else _wrap(title.split(), font, width - 2 * gap)
    lines = _wrap(words, large, width - 2 * gap)
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
            label = _shorten(words[i - 1], font, panel_size)
            draw.text((left + panel_size / 2, top + label_height / 2), label, fill=INK, font=font, anchor="mm")
        figure.paste(panel, (left, top + label_height))
    return figure


def _check_grid(grid: tuple[int, int]) -> None:
    if min(grid) < 1:
        raise ValueError(f"grid is {grid}; expected (rows, columns), each at least 1")


def _check_size(name: str, size: int, least: int, grid: tuple[int, int]) -> None:
    if size < least:
        raise ValueError(f"{name} is {size}; a {grid[0]}x{grid[1]} grid and its words need at least {least} pixels")


def _check_weights(weights: NDArray[Any], grid: tuple[int, int]) -> NDArray[np.float64]:
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


def _is_hard(weights: NDArray[np.float64]) -> bool:
    return int(np.count_nonzero(weights)) == 1


def _tile(location: int, grid: tuple[int, int], size: int) -> _Tile:
    """The pixels of a location in an image of ``size`` pixels squared."""
    rows, columns = grid
    row, column = divmod(location, columns)
    return _Tile(
        round(column * size / columns),
        round(row * size / rows),
        round((column + 1) * size / columns),
        round((row + 1) * size / rows),
    )


def _square(image: Image.Image, size: int) -> Image.Image:
    """The image as RGB, ``size`` pixels squared: a drawing keeps its crisp edges, a photograph its smooth ones."""
    rgb = image.convert("RGB")
    if max(rgb.size) <= min(size, DRAWN):
        # Whole pixels first, then the average: all pixels come out equally large at any ratio.
        whole = (rgb.width * -(-size // rgb.width), rgb.height * -(-size // rgb.height))
        rgb = rgb.resize(whole, Image.Resampling.NEAREST)
        return rgb.resize((size, size), Image.Resampling.BOX)
    return rgb.resize((size, size), Image.Resampling.LANCZOS)


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _heat(weights: NDArray[np.float64], grid: tuple[int, int], size: int) -> Pixels:
    """Weights as a smooth map, float32 (size, size, 1) in [0, 1]."""
    small = Image.fromarray(weights.reshape(grid).astype(np.float32))
    heat = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return heat.clip(0, 1)[..., None]  # bicubic overshoots on both sides


def _light(pixels: Pixels, heat: Pixels, colour: Colour, *, dark: float, tint: float) -> Pixels:
    """Darken to the share ``dark`` where ``heat`` is 0, and blend in the share ``tint`` of ``colour`` where it is 1."""
    lit = (1 - tint) * pixels + tint * np.array(colour, dtype=np.float32)
    return ((1 - heat) * dark * pixels + heat * lit).astype(np.float32)


def _draw_grid(pixels: Pixels, grid: tuple[int, int]) -> None:
    """Draw faint lines between the tiles, in place: lighter on dark ground, darker on light, so they show on any."""
    size = len(pixels)
    for ground, parts in ((pixels, grid[0]), (pixels.swapaxes(0, 1), grid[1])):
        lines = [round(i * size / parts) for i in range(1, parts)]
        toward = np.where(ground[lines].mean(axis=2, keepdims=True) > 110, 0.0, 255.0)
        ground[lines] += 0.16 * (toward - ground[lines])


def _mark_trail(pixels: Pixels, trail: Sequence[int], grid: tuple[int, int]) -> None:
    """Draw a dot on every past glimpse, in place; a place seen twice keeps its latest, brightest dot."""
    size, locations = len(pixels), grid[0] * grid[1]
    latest: dict[int, int] = {}
    for age, location in enumerate(reversed(trail)):
        if not 0 <= location < locations:
            raise ValueError(f"trail has location {location}; the grid has locations 0 to {locations - 1}")
        latest.setdefault(location, age)
    radius = max(1.2, 0.09 * size / max(grid))
    for location, age in latest.items():
        tile = _tile(location, grid, size)
        ground = pixels[tile.top : tile.bottom, tile.left : tile.right]
        height, width = ground.shape[:2]
        y, x = np.ogrid[:height, :width]
        distance = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)[..., None].astype(np.float32)
        opacity = max(0.25, 0.85**age)
        for reach, colour in ((1.35 * radius, INK), (radius, ACCENT)):
            cover = opacity * (reach + 0.5 - distance).clip(0, 1)  # a pixel on the rim is covered in part
            ground += cover * (np.array(colour, dtype=np.float32) - ground)


def _draw_box(picture: Image.Image, tile: _Tile) -> None:
    """Outline a tile in the accent colour between two dark lines, which set it off from any image."""
    side = min(tile.right - tile.left, tile.bottom - tile.top)
    width = max(1, min(picture.width // 110, side // 6))
    left, top, right, bottom = tile.left, tile.top, tile.right - 1, tile.bottom - 1  # Pillow counts the last pixel in
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK)
    draw.rectangle((left, top, right, bottom), outline=ACCENT, width=width)
    draw.rectangle((left + width, top + width, right - width, bottom - width), outline=INK)


def _panel(plain: Image.Image, grid: tuple[int, int], weights: NDArray[np.float64]) -> Image.Image:
    """The image with one word's glimpse lit: a box on a hard one, white light on a soft one."""
    size = plain.width
    pixels = np.asarray(plain, dtype=np.float32)
    if not _is_hard(weights):
        return _to_image(_light(pixels, _heat(weights, grid, size), PAPER, dark=0.35, tint=0.4))
    tile = _tile(int(weights.argmax()), grid, size)
    inside = np.zeros((size, size, 1), dtype=np.float32)
    inside[tile.top : tile.bottom, tile.left : tile.right] = 1
    panel = _to_image(_light(pixels, inside, PAPER, dark=0.45, tint=0.0))
    _draw_box(panel, tile)
    return panel


def _font(size: int) -> FreeTypeFont:
    """Pillow's own font at ``size`` pixels."""
    return cast(FreeTypeFont, ImageFont.load_default(size=size))  # with a size it is never the bitmap font


def _shorten(word: str, font: FreeTypeFont, width: float) -> str:
    """The word, or as much of it as fits in ``width`` pixels and an ellipsis."""
    if font.getlength(word) <= width:
        return word
    while word and font.getlength(word + "…") > width:
        word = word[:-1]
    return word + "…"


def _wrap(words: Sequence[str], font: FreeTypeFont, width: float) -> list[list[str]]:
    """Words in lines of at most ``width`` pixels."""
    lines: list[list[str]] = []
    for word in (_shorten(word, font, width) for word in words):
        if lines and font.getlength(" ".join([*lines[-1], word])) <= width:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def _caption_strip(words: Sequence[str], reward: float | None, width: int) -> Image.Image:
    """The caption so far with its last word highlighted, and a line of numbers; as tall for one word as for twenty."""
    text_size = max(10, width // 24)
    margin, line_height, small_size = text_size * 4 // 5, round(1.35 * text_size), max(9, round(0.72 * text_size))
    least = 2 * margin + CAPTION_LINES * line_height + 2 * small_size
    height = -(-(width + least) // 16) * 16 - width
    strip = Image.new("RGB", (width, height), INK)
    draw = ImageDraw.Draw(strip)
    font, small = _font(text_size), _font(small_size)

    lines = _wrap(words, font, width - 2 * margin)
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
    draw.line((margin, height - 2.2 * small_size, width - margin, height - 2.2 * small_size), fill=RULE)
    count = "no glimpse yet" if not words else "1 word" if len(words) == 1 else f"{len(words)} words"
    draw.text((margin, middle), count, fill=MUTED, font=small, anchor="lm")
    if reward is not None:
        value = f"{reward:.3f}"
        draw.text((width - margin, middle), value, fill=TEXT, font=small, anchor="rm")
        right = width - margin - small.getlength(value + " ")
        draw.text((right, middle), "reward", fill=MUTED, font=small, anchor="rm")
    return strip
