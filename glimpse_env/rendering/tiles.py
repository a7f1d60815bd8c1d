"""Grid arithmetic of pictures: which pixels show a location, which location a pixel shows, and weights as a heat map.

Location ``i`` of a grid of (rows, columns) is at row ``i // columns``, column ``i % columns``. A strip has one row; the
frames of a clip are stacked from top to bottom. Pictures have any aspect ratio; a size is (height, width) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glimpse_env.core.location_grid import Box, LocationGrid
from glimpse_env.rendering.drawing import Pixels, Size

Grid = tuple[int, int]  # rows and columns of locations
AnyGrid = LocationGrid | Sequence[int]

_LOCATION_PIXELS = 4  # height and width of a location, at least


def check_grid(grid: AnyGrid) -> Grid:
    """Rows and columns of the picture of a grid with one to three axes; raises as ``LocationGrid`` does."""
    *rows, columns = grid.shape if isinstance(grid, LocationGrid) else LocationGrid(tuple(grid)).shape
    return math.prod(rows), columns


def picture_size(grid: AnyGrid, size: int | Size) -> Size:
    """(height, width) in pixels of a picture ``size`` pixels wide: a square, or as the cells of a ``LocationGrid``."""
    if isinstance(size, tuple):
        return size
    return (grid.height_of(size) if isinstance(grid, LocationGrid) else size, size)


def check_size(name: str, size: int | Size, narrowest: int, any_grid: AnyGrid) -> Size:
    """The result of ``picture_size``, checked.

    Raises:
        ValueError: it is too small for the grid, or less than ``narrowest`` pixels wide.
    """
    grid, (height, width) = check_grid(any_grid), picture_size(any_grid, size)
    least = (_LOCATION_PIXELS * grid[0], max(narrowest, _LOCATION_PIXELS * grid[1]))
    if height < least[0] or width < least[1]:
        pixels = least if isinstance(size, tuple) else max(least)
        raise ValueError(f"{name} is {size}; a {grid[0]}x{grid[1]} grid and its words need at least {pixels} pixels")
    return height, width


def check_weights(weights: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """Weights as shares of the largest, (L,) in [0, 1]; all zeros mean no preference and become ones.

    Raises:
        ValueError: the shape is not (L,), or a weight is negative or not finite.
    """
    locations = grid[0] * grid[1]
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (locations,):
        raise ValueError(
            f"weights has shape {array.shape}; a {grid[0]}x{grid[1]} grid needs one weight a location, ({locations},)"
        )
    wrong = np.flatnonzero(~np.isfinite(array) | (array < 0))
    if wrong.size:
        raise ValueError(f"weights[{wrong[0]}] is {array[wrong[0]]}; weights must be finite and not negative")
    largest = array.max()
    return array / largest if largest > 0 else np.ones(locations)


def hard_location(weights: NDArray[np.float64] | None) -> int | None:
    """The only location with a positive weight; None for soft weights or no weights."""
    return int(weights.argmax()) if weights is not None and np.count_nonzero(weights) == 1 else None


def location_box(location: int, grid: Grid, size: Size) -> Box:
    """The pixels of a location."""
    height, width = size
    return LocationGrid(grid).box(location, width, height)


def location_at(x: int, y: int, grid: Grid, size: Size) -> int | None:
    """The location that a pixel shows; None outside the picture."""
    (rows, columns), (height, width) = grid, size
    return y * rows // height * columns + x * columns // width if 0 <= x < width and 0 <= y < height else None


def shifted_location(location: int, down: int, right: int, grid: Grid) -> int:
    """The location some rows down and columns to the right, or the last one before the edge."""
    row, column = divmod(location, grid[1])
    return min(max(row + down, 0), grid[0] - 1) * grid[1] + min(max(column + right, 0), grid[1] - 1)


def heat_map(weights: NDArray[np.float64], grid: Grid, size: Size) -> Pixels:
    """Weights as a smooth map, float32 (H, W, 1) in [0, 1]."""
    cells = Image.fromarray(weights.reshape(grid).astype(np.float32))
    pixels = np.asarray(cells.resize(size[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
    return pixels.clip(0, 1)[..., None]  # bicubic overshoots on both sides


def draw_grid(pixels: Pixels, grid: Grid) -> None:
    """Draw faint lines between the tiles, in place: lighter on dark ground, darker on light, so they show on any."""
    for lines, count in ((pixels, grid[0]), (pixels.swapaxes(0, 1), grid[1])):
        edges = [round(i * len(lines) / count) for i in range(1, count)]
        toward = np.where(lines[edges].mean(axis=2, keepdims=True) > 110, 0.0, 255.0)
        lines[edges] += 0.16 * (toward - lines[edges])
