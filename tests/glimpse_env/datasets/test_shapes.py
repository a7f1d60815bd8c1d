"""Shapes draws what it says and says what it draws: scenes, references and ground truth agree."""

from __future__ import annotations

import hashlib
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from glimpse_env.datasets import CaptionDataset, make_dataset
from glimpse_env.datasets.shapes import COLOURS, LARGE, SHAPES, SIZES, SMALL, TILE, Shapes
from tests.conftest import SHAPES_CONFIGS

SPLITS = ("train", "val", "test")
ROWS = range(60)
LENGTHS = {
    "shapes": {"train": 20_000, "val": 1_000, "test": 1_000},
    "shapes-large": {"train": 10_000, "val": 1_000, "test": 1_000},
}
GOLDEN = {
    ("shapes", "train"): "0b9d5edf874f6362",
    ("shapes", "val"): "5bac1683c3fd6268",
    ("shapes", "test"): "58762ebe10a4c81d",
    ("shapes-large", "train"): "76834414c03c3580",
    ("shapes-large", "val"): "dfc419be3cf2806b",
    ("shapes-large", "test"): "48a4ed4527ef8f76",
}
PHRASE = "a (?P<size{0}>\\w+) (?P<colour{0}>\\w+) (?P<shape{0}>\\w+)"
RELATION = "(?P<relation{0}>above|below|left of|right of)"
OTHERS = "".join(f"( and {RELATION.format(i)} {PHRASE.format(i)})?" for i in range(2, 5))
GRAMMAR = [
    re.compile(f"{subject} {RELATION.format(1)} {PHRASE.format(1)}{OTHERS}")
    for subject in (f"there is {PHRASE.format(0)}", f"{PHRASE.format(0)} is")
]


def true_of(relation, tile, tile2, side):
    (row, column), (row2, column2) = divmod(tile, side), divmod(tile2, side)
    return {
        "above": row < row2,
        "below": row > row2,
        "left of": column < column2,
        "right of": column > column2,
    }[relation]


def parse(words):
    """The objects and relations of a caption, read with the documented grammar."""
    sentence = " ".join(words)
    (match,) = [match for match in (grammar.fullmatch(sentence) for grammar in GRAMMAR) if match]
    groups = match.groupdict()
    count = 1 + sum(groups[f"relation{i}"] is not None for i in range(1, 5))
    objects = [tuple(groups[f"{attribute}{i}"] for attribute in ("size", "colour", "shape")) for i in range(count)]
    return objects, [groups[f"relation{i}"] for i in range(1, count)]


@pytest.fixture(scope="module", params=itertools.product(SHAPES_CONFIGS, SPLITS), ids="-".join)
def shapes(request):
    world, split = request.param
    return Shapes(split, SHAPES_CONFIGS[world])


@pytest.fixture(params=SHAPES_CONFIGS)
def world(request):
    return SHAPES_CONFIGS[request.param]


def test_it_is_a_dataset(shapes):
    assert isinstance(shapes, CaptionDataset)
    dataset = make_dataset(shapes.name, shapes.split)
    assert isinstance(dataset, Shapes)
    assert dataset.fingerprint() == shapes.fingerprint()
    assert len(shapes) == LENGTHS[shapes.name][shapes.split]
    assert shapes.image_id(7) == f"{shapes.name}-{shapes.split}-7"


def digest(shapes):
    """Hash of a few rows: images, objects, references and glimpses."""
    sha = hashlib.sha256(shapes.fingerprint().encode())
    for row in (*range(10), len(shapes) - 1):
        references = shapes.references(row)
        sha.update(np.asarray(shapes.image(row)).tobytes())
        sha.update(repr([tuple(thing) for thing in shapes.objects(row)]).encode())
        sha.update(repr((references, shapes.ordered_references(row), shapes.glimpses(row, references[-1]))).encode())
    return sha.hexdigest()[:16]


def test_scenes_and_references_never_change(shapes):
    assert digest(shapes) == GOLDEN[shapes.name, shapes.split]


def test_a_scene_follows_from_split_and_row_alone(shapes):
    twin = Shapes(shapes.split, shapes.config)
    for row in (31, 4, 31, len(shapes) - 1):  # in any order, and repeatedly
        assert twin.objects(row) == shapes.objects(row)
        assert twin.references(row) == shapes.references(row)
        assert np.array_equal(np.asarray(twin.image(row)), np.asarray(shapes.image(row)))
    assert shapes.objects(np.int64(4)) == shapes.objects(4)


def test_splits_and_rows_differ(world):
    pictures = [np.asarray(Shapes(split, world).image(row)).tobytes() for split in SPLITS for row in range(10)]
    assert len(set(pictures)) == len(pictures)
    scenes = {split: [Shapes(split, world).objects(row) for row in range(100)] for split in SPLITS}
    for split, split2 in itertools.combinations(SPLITS, 2):
        assert not set(scenes[split]) & set(scenes[split2])
        assert Shapes(split, world).fingerprint() != Shapes(split2, world).fingerprint()


def test_objects_differ_and_share_no_row_or_column(shapes):
    counts, side = set(), shapes.config.side
    for row in range(300):
        objects = shapes.objects(row)
        counts.add(len(objects))
        assert len({thing[:3] for thing in objects}) == len(objects)
        assert len({thing.tile // side for thing in objects}) == len(objects)
        assert len({thing.tile % side for thing in objects}) == len(objects)
        assert [thing.tile for thing in objects] == sorted(thing.tile for thing in objects)
        for thing in objects:
            assert thing.size in SIZES
            assert thing.colour in COLOURS
            assert thing.shape in SHAPES
            assert 0 <= thing.tile < side * side
    assert counts == ({2, 3} if shapes.config is SMALL else {4, 5})


def test_every_kind_of_object_occurs_on_every_tile(world):
    scenes = [Shapes("train", world).objects(row) for row in range(2000)]
    assert {thing[:3] for scene in scenes for thing in scene} == set(itertools.product(SIZES, COLOURS, SHAPES))
    assert {thing.tile for scene in scenes for thing in scene} == set(range(world.side**2))


def test_references_are_all_true_and_none_is_missing(shapes):
    for row in ROWS[:10] if shapes.config is LARGE else ROWS:
        tiles = {thing[:3]: thing.tile for thing in shapes.objects(row)}
        references = shapes.references(row)
        assert len(references) == {2: 8, 3: 48, 4: 64, 5: 160}[len(tiles)] >= 5
        assert max(map(len, references)) < shapes.config.longest
        assert len({tuple(reference) for reference in references}) == len(references)
        claims, side = set(), shapes.config.side
        for reference in references:
            objects, relations = parse(reference)
            assert sorted(objects) == sorted(tiles)  # each object once
            for relation, thing in zip(relations, objects[1:], strict=True):
                assert true_of(relation, tiles[objects[0]], tiles[thing], side), reference
            claims.add((tuple(objects), tuple(relations), reference[0]))
        # Brute force: every order that is allowed, every relation that holds, both openings.
        possible = {
            (objects, relations, opening)
            for objects in itertools.permutations(tiles)
            for relations in itertools.product(("above", "below", "left of", "right of"), repeat=len(tiles) - 1)
            if shapes.config.any_order or [*objects[1:]] == sorted(objects[1:], key=tiles.__getitem__)
            if all(true_of(r, tiles[objects[0]], tiles[o], side) for r, o in zip(relations, objects[1:], strict=True))
            for opening in ("there", "a")
        }
        assert claims == possible


def test_the_captioners_vocabulary_says_everything(captioner, world):
    captions = [reference for row in ROWS for reference in Shapes("train", world).references(row)]
    assert captioner.vocabulary.coverage(captions) == 1.0


def test_word_locations_name_the_tiles_of_every_content_word(shapes):
    for row in ROWS:
        objects = shapes.objects(row)
        locations = shapes.word_locations(row)
        assert set(locations) == {word for thing in objects for word in thing[:3]}
        for word, tiles in locations.items():
            assert set(tiles) == {thing.tile for thing in objects if word in thing.noun_phrase}
            assert len(tiles) == len(set(tiles))


def palette_shares(tile):
    """Of the coloured pixels of a tile, (n, 3), how many there are and the share nearest in hue to each colour."""
    pixels = tile.reshape(-1, 3).astype(float)
    coloured = pixels[np.ptp(pixels, axis=1) > 90]  # the grey ground's grain spreads by less
    hues = np.array(list(COLOURS.values()), float)
    hues = (hues - hues.mean(1, keepdims=True)) / np.linalg.norm(hues - hues.mean(1, keepdims=True), axis=1)[:, None]
    nearest = ((coloured - coloured.mean(1, keepdims=True)) @ hues.T).argmax(1)
    return len(coloured), dict(zip(COLOURS, np.bincount(nearest, minlength=len(COLOURS)), strict=True))


def test_the_picture_shows_each_object_in_its_tile(world):
    side = world.side
    areas = {size: [] for size in SIZES}
    for row in ROWS:
        scene = Shapes("val", world)
        picture = np.asarray(scene.image(row))
        assert picture.shape == (side * TILE, side * TILE, 3)
        assert picture.dtype == np.uint8
        for thing in scene.objects(row):
            y, x = thing.tile // side * TILE, thing.tile % side * TILE
            count, colours = palette_shares(picture[y : y + TILE, x : x + TILE])
            areas[thing.size].append(count)
            assert count >= 5, thing
            assert colours[thing.colour] >= 0.8 * count, thing
    assert np.mean(areas["large"]) > 2 * np.mean(areas["small"])


def test_a_location_sees_its_own_tile_only(captioner):
    scene = Shapes("test")
    picture = scene.image(0)
    before = captioner.encoder.encode([picture])[0]
    for tile in (0, 6, 24, 30, 48):
        changed = np.asarray(picture).copy()
        y, x = tile // 7 * TILE, tile % 7 * TILE
        changed[y : y + TILE, x : x + TILE] = 255 - changed[y : y + TILE, x : x + TILE]
        after = captioner.encoder.encode([Image.fromarray(changed)])[0]
        moved = (before - after).abs().amax(1) > 1e-5
        assert moved.nonzero().flatten().tolist() == [tile]


@pytest.mark.parametrize("row", [-1, 1000, 10**9])
@pytest.mark.parametrize("method", ["image", "references", "objects", "word_locations", "image_id"])
def test_rows_that_do_not_exist_are_named(method, row):
    with pytest.raises(IndexError, match=rf"image {row} does not exist; Shapes val has rows 0 to 999"):
        getattr(Shapes("val"), method)(row)


def test_splits_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="'valid'"):
        Shapes("valid")


def test_glimpses_follow_the_objects_as_they_are_named(world):
    dataset = Shapes("val", world)
    for row in range(20):
        objects = {(thing.size, thing.colour, thing.shape): thing.tile for thing in dataset.objects(row)}
        for reference in dataset.references(row):
            glimpses = dataset.glimpses(row, reference)
            assert len(glimpses) == len(reference) + 1
            assert glimpses[-1] == -1
            named = [i for i, word in enumerate(reference) if word in SHAPES]
            assert [glimpses[i] for i in named] == [objects[tuple(reference[i - 2 : i + 1])] for i in named]
            for before, after in zip([-1, *named[:-1]], named, strict=True):  # one location from noun to noun
                assert len(set(glimpses[before + 1 : after + 1])) == 1


def test_ordered_references_are_the_references_that_follow_reading_order(world):
    dataset = Shapes("val", world)
    for row in range(20):
        order = [thing.shape for thing in dataset.objects(row)]
        ordered = [
            reference
            for reference in dataset.references(row)
            if [word for word in reference if word in SHAPES] == order
        ]
        assert sorted(dataset.ordered_references(row)) == sorted(ordered)
        assert len(ordered) == 2 ** len(order)
