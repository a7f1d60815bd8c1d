"""Where locations lie: strips, pictures and stacks of frames."""

from __future__ import annotations

import numpy as np
import pytest

from glimpse_env.core.location_grid import LocationGrid

SHAPES = [(1,), (10,), (3, 4), (7, 7), (2, 3, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_locations_are_numbered_in_reading_order(shape):
    grid = LocationGrid(shape)
    assert len(grid) == np.prod(shape)
    for location in range(len(grid)):
        assert grid.position(location) == np.unravel_index(location, shape)
        assert grid.location(grid.position(location)) == location
    assert grid.center == grid.location([size // 2 for size in shape])


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_are_one_step_away(shape):
    grid = LocationGrid(shape)
    positions = np.array([grid.position(location) for location in range(len(grid))])
    for location in range(len(grid)):
        distances = np.abs(positions - positions[location]).sum(1)
        assert grid.neighbours(location) == np.flatnonzero(distances == 1).tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("width", "height"), [(60, 42), (101, 77)])
def test_boxes_tile_a_picture(shape, width, height):
    grid = LocationGrid(shape)
    covered = np.zeros((height, width), int)
    for location in range(len(grid)):
        left, top, right, bottom = grid.box(location, width, height)
        covered[top:bottom, left:right] += 1
    frames = shape[0] if len(shape) == 3 else 1
    assert (covered == frames).all()


def test_a_strip_is_drawn_in_the_proportions_of_its_cells():
    assert LocationGrid((10,), (16.0, 16.0)).height_of(448) == 45
    assert LocationGrid((3, 4), (2.0, 1.0)).height_of(100) == 150
    assert LocationGrid((1000,)).height_of(10) == 1
    assert LocationGrid((3, 2, 4), (16, 16)).height_of(448) == 672  # frames below each other
    assert str(LocationGrid((3, 4))) == "3x4"


@pytest.mark.parametrize("location", [-1, 12])
def test_a_location_that_does_not_exist_is_named(location):
    grid = LocationGrid((3, 4))
    for of in (grid.position, grid.neighbours, lambda location: grid.box(location, 40, 30)):
        with pytest.raises(ValueError, match=rf"location {location} does not exist; the grid 3x4 has locations 0 to"):
            of(location)


@pytest.mark.parametrize("index", [-1, 7, 99])
def test_an_index_that_does_not_exist_is_named(index):
    with pytest.raises(ValueError, match=rf"index {index} of position \(0, {index}\) does not exist in the grid 7x7"):
        LocationGrid((7, 7)).location([0, index])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        LocationGrid((7, 7)).location([3])


def test_a_list_or_numbers_of_numpy_are_a_shape():
    assert LocationGrid([np.int64(3), 4], [2, 1.5]) == LocationGrid((3, 4), (2, 1.5))
    assert hash(LocationGrid([3, 4], [2, 1.5])) == hash(LocationGrid((3, 4), (2, 1.5)))
    assert type(LocationGrid((np.int64(3),)).shape[0]) is int


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4), (0,), (3, -1), 10, None, "10", ("10",), (2.5,), (True,)])
def test_a_shape_without_locations_is_refused(shape):
    with pytest.raises(ValueError, match=r"grid is .*expected \(columns,\), \(rows, columns\) or"):
        LocationGrid(shape)


@pytest.mark.parametrize("cell", [(0.0, 1.0), (1.0, -2.0), 16, None, (16,), (1, 2, 3), ("a", "b"), (float("nan"), 1)])
def test_a_cell_without_extent_is_refused(cell):
    with pytest.raises(ValueError, match=r"cell is .*expected the height and width of a location in pixels"):
        LocationGrid((7, 7), cell)
