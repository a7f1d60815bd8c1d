"""The grid of an input's locations: a strip, a picture or a stack of frames.

Encoders, agents and rendering ask it where a location lies. Locations are numbered in reading order, 0 to L − 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple


class Box(NamedTuple):
    """Pixels of one location: left and top belong to it, right and bottom are the first that do not."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class LocationGrid:
    """How L locations tile an input.

    Attributes:
        shape: ``(C,)`` for a strip of C columns, ``(R, C)`` for a picture, ``(T, R, C)`` for T frames.
        cell: height and width of one location in pixels of the input, on any scale; their ratio is what is drawn.

    Raises:
        ValueError: the shape is not one to three integers of at least 1, or a cell has no extent.
    """

    shape: tuple[int, ...]
    cell: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        shape, cell = (tuple(v) if isinstance(v, (tuple, list)) else () for v in (self.shape, self.cell))
        if not 1 <= len(shape) <= 3 or any(type(n) is bool or not isinstance(n, Integral) or n < 1 for n in shape):
            raise ValueError(f"grid is {self.shape!r}; expected (columns,), (rows, columns) or (frames, rows, columns)")
        if len(cell) != 2 or not all(isinstance(side, Real) and 0 < side < math.inf for side in cell):
            raise ValueError(f"cell is {self.cell!r}; expected the height and width of a location in pixels")
        self.__dict__.update(shape=tuple(map(int, shape)), cell=cell)  # hashable, also if they were lists

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:  # such as 7x7
        return "x".join(map(str, self.shape))

    @property
    def rows(self) -> int:
        """Rows of one picture; a strip has one."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        """Columns of one picture."""
        return self.shape[-1]

    @property
    def center(self) -> int:
        """The location in the middle of every axis."""
        return self.location([size // 2 for size in self.shape])

    def location(self, position: Sequence[int]) -> int:
        """The location at a position, one index per axis of ``shape``.

        Raises:
            ValueError: an index does not exist, or there is not one per axis.
        """
        location = 0
        for index, size in zip(position, self.shape, strict=True):
            if not 0 <= index < size:
                raise ValueError(f"index {index} of position {tuple(position)} does not exist in the grid {self}")
            location = location * size + index
        return location

    def position(self, location: int) -> tuple[int, ...]:
        """The position of a location, one index per axis of ``shape``.

        Raises:
            ValueError: there is no such location.
        """
        if not 0 <= location < len(self):
            raise ValueError(f"location {location} does not exist; the grid {self} has locations 0 to {len(self) - 1}")
        strides = (math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return tuple(location // stride % size for stride, size in zip(strides, self.shape, strict=True))

    def neighbours(self, location: int) -> list[int]:
        """Locations one step away along one axis, in reading order."""
        position = self.position(location)
        steps = [
            (*position[:axis], index + step, *position[axis + 1 :])
            for axis, index in enumerate(position)
            for step in (-1, 1)
            if 0 <= index + step < self.shape[axis]
        ]
        return sorted(map(self.location, steps))

    def box(self, location: int, width: int, height: int) -> Box:
        """The pixels of a location in a picture (one frame) of ``width`` × ``height`` pixels.

        Raises:
            ValueError: there is no such location.
        """
        row, column = divmod(self.location(self.position(location)) % (self.rows * self.columns), self.columns)
        return Box(
            round(column * width / self.columns),
            round(row * height / self.rows),
            round((column + 1) * width / self.columns),
            round((row + 1) * height / self.rows),
        )

    def height_of(self, width: int) -> int:
        """Height in pixels, at least 1, of an input drawn ``width`` pixels wide, frames one below the other."""
        rows = math.prod(self.shape[:-1])
        return max(1, round(width * rows * self.cell[0] / (self.columns * self.cell[1])))
