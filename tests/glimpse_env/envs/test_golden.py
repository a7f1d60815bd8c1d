"""What the shipped captioners say and earn under the same ids is what they said and earned when they were shipped."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from glimpse_env.models.captioner import shipped_captioners
from tests.conftest import SHAPES_CONFIGS
from tests.golden import (
    DEFAULTS,
    FOLDER,
    PHOTOGRAPHS,
    PIXELS,
    VARIANTS,
    World,
    data_digests,
    find,
    grey_means,
    pixels_digest,
    registered,
)
from tests.photographs import write_photographs

ROUNDED = 2e-6  # rewards are kept to six decimals


def golden_file(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def difference(id, expected, actual):
    """What differs between an episode that was kept and one that was played now, in sentences; None for nothing."""
    bump = (
        f"No word was a close choice, so this is not rounding: {id} behaves otherwise. Undo the change, or make it a "
        "new version of the id (-v1) and write the files anew: python -m tests.golden"
    )
    for name, what in (("image", "the seed draws image"), ("words", "the decoder says"), ("looks", "one looks at")):
        if expected[name] != actual[name]:
            return f"{what} {actual[name]!r}, it was {expected[name]!r}. {bump}"
    for name in ("rewards", "bleu"):
        if len(actual[name]) != len(expected[name]):
            return f"{len(actual[name])} {name}, there were {len(expected[name])}. {bump}"
        largest = max(abs(before - after) for before, after in zip(expected[name], actual[name], strict=True))
        summary = f"the words are the same, but {name} differ by {largest:.2g}"
        if largest > 1e-4:
            return f"{summary}: {actual[name]}, it was {expected[name]}. {bump}"
        if largest > ROUNDED:
            return (
                f"{summary}: rounding of BLEU, which is kept to 1e-6. Find what sums otherwise, or, if it is meant, "
                "write the files anew: python -m tests.golden"
            )
    return None


def test_every_shipped_captioner_has_a_file():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == shipped_captioners()


def assert_says(world, golden):
    assert golden.keys() == VARIANTS.keys()
    for variant, episodes in golden.items():
        assert len(episodes) >= 8
        for expected in episodes:
            actual = world.play(variant, expected["seed"], expected["looks"])
            message = difference(world.id, expected, actual)
            assert message is None, f"captioner {world.name!r}, {variant}, seed {expected['seed']}: {message}"


@pytest.mark.parametrize("name", shipped_captioners())
def test_a_shipped_captioner_says_and_earns_what_it_did(name):
    assert_says(World(name), golden_file(name))


def test_of_photographs_it_says_and_earns_what_it_did(flickr8k_root):
    """The table may be borrowed: that the CNN makes the same of the photographs now is looked at first."""
    golden = json.loads(PHOTOGRAPHS.read_text())
    world = World("flickr8k", photographs=True)
    for name, digest in data_digests(world.dataset).items():
        assert digest == golden.pop(name), f"{name} of val are others, or in another order"
    for expected in golden["hard"]:
        row = expected["image"]
        annotations = world.captioner.encoder.encode([world.dataset.image(row)])[0]
        np.testing.assert_allclose(annotations, world.features[row].astype(np.float32), atol=0.02, err_msg=f"row {row}")
    assert_says(world, golden)


def test_ids_are_registered_with_what_they_were(tmp_path, captioner_file):
    assert registered(write_photographs(tmp_path), str(captioner_file)) == json.loads(DEFAULTS.read_text())


def test_photographs_are_made_ready_as_they_were():
    golden = json.loads(PIXELS.read_text())
    assert {name: pixels_digest(name) for name in shipped_captioners()} == golden


@pytest.mark.parametrize("dataset", SHAPES_CONFIGS)
def test_scenes_look_as_they_did(dataset):
    golden = json.loads((FOLDER / "scenes" / f"{dataset}.json").read_text())
    actual = [grey_means(dataset, row) for row in range(len(golden))]
    off = float(np.abs(np.subtract(actual, golden)).max())
    # Releases of Pillow may draw an edge a little otherwise; the words hold then.
    assert off < 0.25, f"scenes of {dataset} look otherwise, by {off:.2g} of 255: make it a new version of the id (-v1)"


def test_the_command_finds_what_the_files_hold():
    assert find(World("shapes"), "hard", 3) == golden_file("shapes")["hard"][:3]


def test_what_is_kept_tells_ways_and_images_apart():
    for name in shipped_captioners():
        episodes = [episode for variant in golden_file(name).values() for episode in variant]
        assert len({episode["words"] for episode in episodes}) > len(episodes) / 2, name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "words",
            lambda old: old.replace("blue", "red"),
            "the decoder says 'a small red .*, it was 'a small blue .*-v1",
        ),
        ("image", lambda old: old + 1, "the seed draws image 637, it was 636.*-v1"),
        ("looks", lambda old: old[:-1], "one looks at .*-v1"),
        (
            "rewards",
            lambda old: [*old[:-1], old[-1] + 0.01],
            "the words are the same, but rewards differ by 0.01.*-v1",
        ),
        ("bleu", lambda old: [old[0] + 1e-5, *old[1:]], "bleu differ by 1e-05: rounding of BLEU"),
        ("rewards", lambda old: [*old[:-1], old[-1] + 1e-6], None),
    ],
    ids="words image looks rewards bleu rounding".split(),
)
def test_a_difference_is_said_in_a_sentence(name, change, message):
    expected = golden_file("shapes")["hard"][0]
    actual = copy.deepcopy(expected)
    actual[name] = change(actual[name])
    sentence = difference("Glimpse/Shapes-v0", expected, actual)
    if message is None:
        assert sentence is None
    else:
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(sentence)
