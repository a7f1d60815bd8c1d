"""Frames, text grids and figures: everything is drawn in the tile of its location, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from glimpse_env.datasets.shapes import Shapes
from glimpse_env.rendering.drawing import ACCENT, INK, mark_drawing, resize
from glimpse_env.rendering.frames import render_frame, render_text
from glimpse_env.rendering.panels import render_panels
from glimpse_env.rendering.tiles import location_at, location_box
from tests.conftest import SHAPES_CONFIGS

SENTENCE = "a black dog and a white dog with brown spots are staring at each other in the street near grass"
CAPTION = SENTENCE.split()
GREY = Image.new("RGB", (200, 150), (120, 120, 120))
RED = (255, 0, 0)


def one_hot(location, grid=(7, 7)):
    weights = np.zeros(grid[0] * grid[1], dtype=np.float32)
    weights[location] = 1
    return weights


def tile(location, grid, size):
    """The rectangle of a location, from the definition: row-major, equal extents."""
    height, width = size if isinstance(size, tuple) else (size, size)
    row, column = location // grid[1], location % grid[1]
    y, x = (
        [round(i * length / count) for i in (index, index + 1)]
        for index, length, count in ((row, height, grid[0]), (column, width, grid[1]))
    )
    return slice(*y), slice(*x)


def where(frame, colour):
    return (frame == np.array(colour)).all(axis=-1)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_every_frame_of_an_episode_has_one_shape():
    rng = np.random.default_rng(0)
    frames = [render_frame(GREY, (7, 7), weights=None)]
    for step in range(60):
        weights = one_hot(step % 49) if step % 2 else rng.random(49)
        words = (CAPTION * 3)[: step + 1]
        reward = None if step < 59 else 0.5
        frames.append(render_frame(GREY, (7, 7), weights=weights, trail=range(step % 49), words=words, reward=reward))
    assert len({frame.shape for frame in frames}) == 1
    assert all(frame.dtype == np.uint8 for frame in frames)
    height, width, channels = frames[0].shape
    assert (width, channels) == (448, 3)
    assert height > 448
    assert height % 16 == 0


def test_a_caption_without_words_says_whether_there_was_a_glimpse():
    height = render_frame(GREY, (7, 7), weights=None).shape[1]
    unseen, seen, ended = (
        render_frame(GREY, (7, 7), weights=weights, trail=trail)[height:]
        for weights, trail in ((None, ()), (one_hot(3), ()), (np.ones(49), ()))
    )
    assert not np.array_equal(unseen, seen)
    assert np.array_equal(seen, ended)


@pytest.mark.parametrize("image", [Image.new("L", (30, 90)), Image.new("RGBA", (500, 40)), Image.new("P", (7, 7))])
def test_any_image_gives_the_same_shape(image):
    frames = [render_frame(picture, (7, 7), weights=None, size=256) for picture in (image, GREY)]
    assert frames[0].shape == frames[1].shape


@pytest.mark.parametrize(
    ("grid", "size"), [((7, 7), 448), ((3, 5), 320), ((14, 10), 250), ((2, 12), (90, 480)), ((9, 4), (500, 170))]
)
@pytest.mark.parametrize("share", [0.0, 0.37, 1.0])
def test_a_hard_glimpse_is_a_box_on_its_tile_and_nothing_else(grid, size, share):
    location = round(share * (grid[0] * grid[1] - 1))
    before = render_frame(GREY, grid, weights=None, words=["a"], size=size)
    after = render_frame(GREY, grid, weights=one_hot(location, grid), words=["a"], size=size)
    rows, columns = tile(location, grid, size)

    # The tile's outermost pixels all carry the accent colour.
    inside = where(after, ACCENT)[rows, columns]
    border = np.ones_like(inside)
    border[1:-1, 1:-1] = False
    assert inside[border].all()

    # Beyond the tile only the box's dark rim changes, one pixel wide; the middle of the tile does not change.
    changed = (before != after).any(axis=-1)
    near = np.zeros_like(changed)
    near[max(rows.start - 1, 0) : rows.stop + 1, max(columns.start - 1, 0) : columns.stop + 1] = True
    assert not changed[~near].any()
    middle = changed[rows, columns]
    quarter_rows, quarter_columns = len(middle) // 3, middle.shape[1] // 3
    assert not middle[quarter_rows:-quarter_rows, quarter_columns:-quarter_columns].any()


def test_the_box_shows_on_an_image_of_its_own_colour():
    frame = render_frame(Image.new("RGB", (224, 224), ACCENT), (7, 7), weights=one_hot(24))
    rows, columns = tile(24, (7, 7), 448)
    assert where(frame, INK)[rows.start - 1, columns].all()
    assert where(frame, INK)[rows, columns].any()


@pytest.mark.parametrize("grid", [(7, 7), (4, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_a_heat_map_is_brightest_at_the_heaviest_tile(grid, seed):
    rng = np.random.default_rng(seed)
    weights = 0.6 * rng.random(grid[0] * grid[1])
    heaviest = int(rng.integers(len(weights)))
    weights[heaviest] = 1.0
    frame = render_frame(GREY, grid, weights=weights / weights.sum()).astype(float)
    brightness = [frame[tile(i, grid, 448)].mean() for i in range(len(weights))]
    assert int(np.argmax(brightness)) == heaviest
    assert np.corrcoef(brightness, weights)[0, 1] > 0.8


def test_only_the_shares_of_the_weights_matter():
    weights = np.random.default_rng(1).random(49)
    frame = render_frame(GREY, (7, 7), weights=weights)
    assert np.array_equal(frame, render_frame(GREY, (7, 7), weights=8 * weights))
    uniform = render_frame(GREY, (7, 7), weights=np.full(49, 1 / 49))
    assert np.array_equal(uniform, render_frame(GREY, (7, 7), weights=np.zeros(49)))
    assert not np.array_equal(frame, uniform)


def dots(trail, weights=None):
    """How much a trail changes the top left quarter of each tile, where the dots are, (49,)."""
    bare = render_frame(GREY, (7, 7), weights=weights).astype(int)
    change = np.abs(render_frame(GREY, (7, 7), weights=weights, trail=trail).astype(int) - bare)
    corners = [tile(i, (7, 7), 448) for i in range(49)]
    return np.array([change[r.start : r.start + 32, c.start : c.start + 32].sum() for r, c in corners])


def test_the_trail_marks_past_tiles_and_fades():
    # Three steps to the right, one line: a tile between two fixations is crossed by their path and has no dot.
    strength = dots([0, 2, 2, 4, 6])
    assert np.flatnonzero(strength).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert strength[6] > strength[4] > strength[2] > strength[0] > strength[5] > strength[1]
    assert np.flatnonzero(dots([24] * 9)).tolist() == [24]


def test_a_location_with_two_fixations_keeps_its_latest_dot():
    assert dots([8, 8, 10])[8] == dots([8, 10])[8]
    revisited = dots([8, 10, 8, 22])
    assert revisited[8] > dots([8, 10, 12, 22])[8]


def test_the_path_ends_at_the_box_of_the_current_glimpse():
    before = render_frame(GREY, (7, 7), weights=one_hot(24))
    after = render_frame(GREY, (7, 7), weights=one_hot(24), trail=[3, 24, 30, 24])
    rows, columns = tile(24, (7, 7), 448)
    inside = (slice(rows.start + 8, rows.stop - 8), slice(columns.start + 8, columns.stop - 8))
    assert np.array_equal(after[inside], before[inside])
    above = (slice(rows.start - 20, rows.start - 8), columns)
    assert not np.array_equal(after[above], before[above])


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (3, 5)])
def test_a_trail_numbers_its_dots_where_there_is_room(grid):
    def number(trail):
        frame = render_frame(GREY, grid, weights=None, trail=trail)
        return frame[tile(trail[-1], grid, 448)]

    first, third = number([14]), number([1, 2, 14])
    assert np.array_equal(first, number([14, 14]))
    assert not np.array_equal(first, third)


def test_words_and_reward_are_written_below_the_image_only():
    empty = render_frame(GREY, (7, 7), weights=None)
    written = render_frame(GREY, (7, 7), weights=None, words=["a", "dog"])
    scored = render_frame(GREY, (7, 7), weights=None, words=["a", "dog"], reward=0.25)
    assert np.array_equal(empty[:448], scored[:448])
    titled = render_frame(GREY, (7, 7), weights=None, words=["a", "dog"], reward=0.25, title="hard")
    assert np.array_equal(titled[:448], scored[:448])
    assert not np.array_equal(titled, scored)
    assert not np.array_equal(empty, written)
    assert not np.array_equal(written, scored)


def highlighted(strip):
    """Where a caption strip is printed in the accent colour, the only warm one in it; thin print is paler."""
    return strip[..., 0].astype(int) - strip[..., 2] > 40


def test_the_last_word_is_highlighted_and_no_other():
    none, first, second = (
        highlighted(render_frame(GREY, (7, 7), weights=None, words=words)[448:]).any(axis=0).nonzero()[0]
        for words in ([], ["dogs"], ["dogs", "run"])
    )
    assert none.size == 0
    assert second.min() > first.max()


def test_the_bar_is_as_long_as_the_reward():
    def length(reward):
        strip = render_frame(GREY, (7, 7), weights=None, reward=reward)[448:]
        return int(where(strip, ACCENT).sum(axis=1).max())

    assert length(None) == length(-1.0) == length(0.0) == 0
    assert length(5.0) == length(1.0) > 400
    assert length(0.5) == pytest.approx(length(1.0) / 2, abs=1)


@pytest.mark.parametrize("words", [CAPTION, ["photographers"] * 20, CAPTION * 5, ["w" * 300], ["a"] * 200])
@pytest.mark.parametrize("size", [160, 448])
def test_a_long_caption_is_wrapped_and_its_newest_word_is_kept(words, size):
    strip, changed = (
        render_frame(GREY, (7, 7), weights=None, words=caption, reward=-0.5, size=size)[size:]
        for caption in (words, [*words[:-1], "zebra"])
    )
    assert not np.array_equal(strip, changed)
    margin = 5
    assert where(strip[:, :margin], INK).all()
    assert where(strip[:, -margin:], INK).all()
    assert where(strip[:margin], INK).all()
    assert where(strip[-margin:], INK).all()
    assert highlighted(strip).any()


def test_twenty_words_of_a_caption_are_all_shown():
    frames = []
    for i in range(20):
        words = list(CAPTION)
        words[i] = "W" * len(words[i])
        frames.append(render_frame(GREY, (7, 7), weights=None, words=words))
    plain = render_frame(GREY, (7, 7), weights=None, words=CAPTION)
    assert all(not np.array_equal(plain, frame) for frame in frames)


def test_the_image_is_squashed_to_a_square():
    wide = Image.new("RGB", (600, 200), (0, 0, 255))
    wide.paste(RED, (0, 0, 300, 200))
    frame = render_frame(wide, (1, 1), weights=None, size=200)
    assert where(frame[:200, :95], RED).all()
    assert where(frame[:200, 105:], (0, 0, 255)).all()


@pytest.mark.parametrize("side", [84, 260])
def test_a_drawing_keeps_its_crisp_edges_and_a_photograph_its_smooth_ones(side):
    image = Image.new("RGB", (side, side), (255, 255, 255))
    image.paste(RED, (12, 12, 24, 24))
    smooth = resize(image, (448, 448))
    assert np.array_equal(smooth, image.resize((448, 448), Image.Resampling.LANCZOS))
    frame = render_frame(mark_drawing(image), (1, 1), weights=None, size=448)[:448]
    edges = ~(where(frame, RED) | where(frame, (255, 255, 255)))
    assert edges.sum() <= 4 * (12 * 448 // side + 2)  # at most the one pixel an edge runs through
    smaller = resize(image, (64, 64))  # an average; there are no pixels left to keep
    assert np.array_equal(smaller, image.resize((64, 64), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("world", SHAPES_CONFIGS.values(), ids=lambda world: world.name)
def test_a_frame_of_a_drawn_world_shows_its_very_pixels(world):
    scene = Shapes("val", world).image(3)
    times = 448 // scene.width
    assert np.array_equal(np.asarray(resize(scene, (448, 448))), np.asarray(scene).repeat(times, 0).repeat(times, 1))


def test_inputs_are_left_as_they_were():
    image, weights = GREY.copy(), np.random.default_rng(2).random(49)
    before = weights.copy()
    render_frame(image, (7, 7), weights=weights, trail=[1, 2])
    render_panels(image, (7, 7), weights[None], ["dog"])
    assert np.array_equal(weights, before)
    assert np.array_equal(np.asarray(image), np.asarray(GREY))


@pytest.mark.parametrize("size", [(60, 480), (500, 170)])
def test_a_picture_of_any_aspect_ratio_is_as_wide_as_its_frame(size):
    image = Image.new("RGB", (9, 9), RED)
    frame = render_frame(image, (1, 1), weights=None, words=CAPTION, size=size)
    assert (frame.shape[0] % 16, frame.shape[1]) == (0, size[1])
    assert where(frame[: size[0]], RED).all()
    assert not where(frame[size[0] :], RED).any()
    assert np.array_equal(frame, render_frame(np.asarray(image), (1, 1), weights=None, words=CAPTION, size=size))
    figure = render_panels(image, (2, 4), np.ones((1, 8)), ["dog"], panel_size=size)
    assert all((y1 - y0, x1 - x0) == size for x0, y0, x1, y1 in panel_boxes(figure))


@pytest.mark.parametrize("weights", [None, np.eye(8)[5], np.arange(8)])
def test_a_strip_has_one_row_and_a_clip_stacks_its_frames(weights):
    for shape, drawn in (((8,), (1, 8)), ((2, 2, 2), (4, 2))):
        frames = [render_frame(GREY, grid, weights=weights, trail=[7, 0]) for grid in (shape, drawn)]
        assert np.array_equal(*frames)
        texts = [render_text("", grid, weights=weights, words=[], reward=None, ended=True) for grid in (shape, drawn)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("size", [(448, 448), (60, 480), (501, 170)])
def test_each_pixel_belongs_to_one_location(size):
    grid = (4, 6)
    for location in range(24):
        box = location_box(location, grid, size)
        assert location_at((box.left + box.right) // 2, (box.top + box.bottom) // 2, grid, size) == location
    for x, y in ((-1, 0), (0, -1), (size[1], 0), (0, size[0])):
        assert location_at(x, y, grid, size) is None


# --- text -------------------------------------------------------------------------------------------------------------


def cells(text, grid):
    """The grid of a text frame as rows of two-character cells."""
    lines = [line[1:-1] for line in text.split("\n") if line.startswith("│")]
    assert len(lines) == grid[0]
    return [[line[2 * c : 2 * c + 2] for c in range(grid[1])] for line in lines]


@pytest.mark.parametrize("location", [0, 7, 14])
def test_text_marks_the_cell_of_a_hard_glimpse(location):
    grid = (3, 5)
    text = render_text("dog.jpg", grid, weights=one_hot(location, grid), words=["a"], reward=None, ended=False)
    marked = [(r, c) for r, row in enumerate(cells(text, grid)) for c, cell in enumerate(row) if "■" in cell]
    assert marked == [divmod(location, 5)]
    assert text.count("·") == 14


def test_text_shades_a_soft_glimpse_by_weight():
    weights = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 0.0])
    text = render_text("dog.jpg", (2, 3), weights=weights / 2.5, words=["a"], reward=None, ended=False)
    assert cells(text, (2, 3)) == [["  ", "░░", "▒▒"], ["▓▓", "██", "  "]]


def test_text_before_the_first_glimpse_marks_nothing():
    text = render_text("dog.jpg", (7, 7), weights=None, words=[], reward=None, ended=False)
    assert text.count("·") == 49
    assert "■" not in text


def test_text_has_the_image_the_caption_the_reward_and_the_end():
    running = render_text("dog.jpg", (7, 7), weights=one_hot(3), words=["a", "dog"], reward=None, ended=False)
    assert running.startswith("dog.jpg\n")
    assert "a dog …" in running
    assert "reward" not in running
    assert "ended" not in running
    done = render_text("dog.jpg", (7, 7), weights=one_hot(3), words=["a", "dog"], reward=0.25, ended=True)
    assert "a dog\n" in done
    assert "0.250" in done
    assert "ended" in done


def test_the_lines_of_a_text_frame_are_equally_wide_and_short():
    for weights in (None, one_hot(3), np.arange(49)):
        text = render_text("dog.jpg", (7, 7), weights=weights, words=CAPTION * 3, reward=0.1, ended=False)
        lines = text.split("\n")
        assert len({len(line) for line in lines if line[0] in "┌│└"}) == 1
        assert max(map(len, lines)) <= 72


# --- panels -----------------------------------------------------------------------------------------------------------


def panel_boxes(figure):
    """The (left, top, right, bottom) of every panel, for panels of a red image: what is neither paper nor print."""
    pixels = np.asarray(figure).astype(int)
    red = pixels[..., 0] > pixels[..., 2] + 60

    def runs(line):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        return list(zip(edges[::2], edges[1::2], strict=True))

    return [(x0, y0, x1, y1) for y0, y1 in runs(red.any(axis=1)) for x0, x1 in runs(red[y0:y1].any(axis=0))]


@pytest.mark.parametrize(("count", "columns", "rows"), [(7, 4, 2), (8, 4, 3), (1, 6, 1), (0, 6, 1), (3, 1, 4)])
def test_a_figure_has_the_image_and_a_panel_a_word(count, columns, rows):
    # Soft weights without a maximum: every panel stays red all over.
    figure = render_panels(
        Image.new("RGB", (50, 50), RED), (7, 7), np.ones((count, 49)), CAPTION[:count], columns=columns, panel_size=70
    )
    boxes = panel_boxes(figure)
    assert len(boxes) == count + 1
    assert all((x1 - x0, y1 - y0) == (70, 70) for x0, y0, x1, y1 in boxes)
    assert len({top for _, top, _, _ in boxes}) == rows
    assert figure.mode == "RGB"
    assert 0 < figure.width - max(right for _, _, right, _ in boxes) < 20
    assert 0 < figure.height - max(bottom for *_, bottom in boxes) < 20


def test_the_first_panel_is_plain_and_a_hard_panel_lights_its_tile_alone():
    figure = render_panels(Image.new("RGB", (300, 300), RED), (3, 4), np.eye(12)[[6]], ["dog"], panel_size=120)
    plain, hard = (np.asarray(figure.crop(box)) for box in panel_boxes(figure))
    assert where(plain, RED).all()
    rows, columns = tile(6, (3, 4), 120)
    middle = (slice(rows.start + 6, rows.stop - 6), slice(columns.start + 6, columns.stop - 6))
    assert where(hard, RED)[middle].all()
    outside = np.ones(hard.shape[:2], dtype=bool)
    outside[rows.start - 1 : rows.stop + 1, columns.start - 1 : columns.stop + 1] = False
    assert (hard[outside][:, 0] < 200).all()
    assert where(hard, ACCENT)[rows, columns].any()


def test_a_soft_panel_is_brightest_at_the_heaviest_tile():
    weights = np.full(49, 0.01)
    weights[17] = 0.52
    figure = render_panels(Image.new("RGB", (300, 300), RED), (7, 7), weights[None], ["dog"], panel_size=140)
    _, soft = (np.asarray(figure.crop(box)).astype(float) for box in panel_boxes(figure))
    brightness = [soft[tile(i, (7, 7), 140)].mean() for i in range(49)]
    assert int(np.argmax(brightness)) == 17
    # A smooth light: the tile beside the heaviest is lit in part.
    assert brightness[17] > brightness[18] > brightness[20] + 1


def test_a_long_title_and_caption_are_wrapped_above_the_panels():
    weights = np.ones((20, 49))
    image = Image.new("RGB", (300, 300), RED)
    bare = render_panels(image, (7, 7), weights, CAPTION, columns=3, panel_size=96)
    titled = render_panels(image, (7, 7), weights, CAPTION, columns=3, panel_size=96, title="soft attention " * 10)
    assert bare.width == titled.width
    assert titled.height > bare.height
    first = panel_boxes(titled)[0]
    strip = np.asarray(titled)[: first[1]]
    assert (strip < 200).any()
    assert (strip[:, -5:] == 255).all()
    assert (strip[:5] == 255).all()


def test_a_word_wider_than_its_panel_does_not_touch_the_next():
    image = Image.new("RGB", (300, 300), RED)
    figure = render_panels(image, (7, 7), np.ones((1, 49)), ["W" * 40], panel_size=96)
    panel = panel_boxes(figure)[1]
    label = np.asarray(figure)[panel[1] - 14 : panel[1]]
    assert (label[:, : panel[0] - 1] == 255).all()
    assert (label[:, panel[2] + 1 :] == 255).all()
    assert (label[:, panel[0] : panel[2]] < 128).any()


# --- what cannot be drawn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(48), r"shape \(48,\).*7x7.*\(49,\)"),
        (np.ones((7, 7)), r"shape \(7, 7\).*\(49,\)"),
        (np.where(np.arange(49) == 5, np.nan, 1.0), r"weights\[5\] is nan"),
        (np.where(np.arange(49) == 0, np.inf, 1.0), r"weights\[0\] is inf"),
        (np.where(np.arange(49) == 48, -0.25, 1.0), r"weights\[48\] is -0\.25"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        render_frame(GREY, (7, 7), weights=weights)
    with pytest.raises(ValueError, match=message):
        render_text("dog.jpg", (7, 7), weights=weights, words=[], reward=None, ended=False)
    with pytest.raises(ValueError, match=message):
        render_panels(GREY, (7, 7), weights[None], ["dog"])


@pytest.mark.parametrize("location", [-1, 49])
def test_a_trail_outside_the_grid_is_named(location):
    with pytest.raises(ValueError, match=rf"location {location}; the grid has locations 0 to 48"):
        render_frame(GREY, (7, 7), weights=None, trail=[3, location])


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"grid is \(0, 7\)"):
        render_frame(GREY, (0, 7), weights=None)
    with pytest.raises(ValueError, match=r"size is 20; .* at least 160"):
        render_frame(GREY, (7, 7), weights=None, size=20)
    with pytest.raises(ValueError, match=r"size is 200; a 60x2 grid .* at least 240"):
        render_frame(GREY, (60, 2), weights=None, size=200)
    with pytest.raises(ValueError, match=r"size is \(30, 400\); a 8x2 grid .* at least \(32, 160\)"):
        render_frame(GREY, (8, 2), weights=None, size=(30, 400))
    with pytest.raises(ValueError, match="panel_size is 10"):
        render_panels(GREY, (7, 7), np.ones((1, 49)), ["dog"], panel_size=10)
    with pytest.raises(ValueError, match="columns is 0"):
        render_panels(GREY, (7, 7), np.ones((1, 49)), ["dog"], columns=0)
    with pytest.raises(ValueError, match="2 rows for 1 words"):
        render_panels(GREY, (7, 7), np.ones((2, 49)), ["dog"])
