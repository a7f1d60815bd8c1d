"""Captions of one's own photographs, on generated pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tyro
from PIL import Image

import glimpse_env  # noqa: F401 (registers the ids)
from agents.loading import load_agent, make_attention_agent
from glimpse_env.captioner import load_captioner
from glimpse_env.datasets import DataError, Shapes
from glimpse_env.decoding import BeamSearch, decode
from glimpse_env.features import open_features
from glimpse_env.rendering import render_panels
from train.caption import Options, main, stack, unique_names


@pytest.fixture
def options(captioner_file, attention_file, tmp_path):
    """Keyword arguments that name the tiny models and a folder to write to."""
    return {"captioner": str(captioner_file), "attention": attention_file, "out": tmp_path / "out"}


def noise(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    """A PNG with alpha, a grey JPEG, a very wide one, and one pixel."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pictures = {
        "alpha.png": noise("RGBA", (90, 70)),
        "grey.jpg": noise("L", (64, 101)),
        "wide.webp": noise("RGB", (301, 17)),
        "dot.bmp": noise("RGB", (1, 1)),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    return [folder / name for name in pictures]


def records(folder: Path) -> list[dict]:
    return json.loads((folder / "captions.json").read_text())


@pytest.mark.parametrize("agent", ["hard", "soft"])
def test_a_folder_of_pictures_and_captions(options, photos, agent, capsys):
    main(Options(photos=photos, agent=agent, **options))
    out = options["out"]
    made = records(out)
    assert [record["photo"] for record in made] == [str(path) for path in photos]
    assert sorted(path.name for path in out.iterdir()) == sorted([f"{p.stem}.png" for p in photos] + ["captions.json"])
    shown = capsys.readouterr().out
    vocabulary = load_captioner(options["captioner"]).vocabulary
    for path, record in zip(photos, made, strict=True):
        words = record["caption"].split()
        looked = np.array(record["glimpses"])
        assert all(word in vocabulary for word in words)
        assert f"{path}: {record['caption']}" in shown
        assert looked.shape in ((len(words), 49), (len(words) + 1, 49))
        np.testing.assert_allclose(looked.sum(1), 1, atol=1e-4)
        assert (set(np.unique(looked)) == {0, 1}) == (agent == "hard")
        with Image.open(out / record["picture"]) as picture:
            assert picture.format == "PNG"
            assert picture.width > 100


@pytest.mark.parametrize("agent", ["hard", "soft"])
def test_a_scene_in_a_file_is_captioned_as_in_the_environment(options, tmp_path, captioner_file, attention_file, agent):
    rows = [0, 7, 19]
    scenes = [tmp_path / f"{row}.png" for row in rows]
    for row, path in zip(rows, scenes, strict=True):
        Shapes("val").image(row).save(path)
    main(Options(photos=scenes, agent=agent, **options))
    env = gym.make("Glimpse/Shapes-v0", split="val", captioner=str(captioner_file), attention=agent)
    player = load_agent(f"{agent}:{attention_file}", env)
    for row, record in zip(rows, records(options["out"]), strict=True):
        observation, info = env.reset(options={"image": row})
        actions, ended = [], False
        while not ended:
            action, _ = player.predict(observation, deterministic=True)
            actions.append(np.eye(49)[action] if agent == "hard" else action)
            observation, _, ended, _, info = env.step(action)
        assert record["caption"] == info["caption"]
        np.testing.assert_allclose(record["glimpses"], actions, atol=1e-3)
    env.close()


@pytest.mark.parametrize("agent", ["hard", "soft"])
def test_a_beam_searches_for_the_captions(options, tmp_path, captioner_file, attention_file, agent):
    rows = [0, 7, 19, 33]
    scenes = [tmp_path / f"{row}.png" for row in rows]
    for row, path in zip(rows, scenes, strict=True):
        Shapes("val").image(row).save(path)
    line = f"--decode beam --beam-width 4 --length-normalisation 0.6 --agent {agent} --out {options['out']}"
    models = ["--captioner", str(captioner_file), "--attention", str(attention_file)]
    main(tyro.cli(Options, args=[*map(str, scenes), *line.split(), *models]))
    captioner = load_captioner(captioner_file)
    features = open_features(Shapes("val"), captioner.encoder)
    player = make_attention_agent(agent, attention_file, captioner, features)
    expected = decode(captioner, features, player, rows, BeamSearch(4, 0.6))
    found = records(options["out"])
    assert [one["caption"] for one in found] == [" ".join(one.words) for one in expected]
    for one, made in zip(found, expected, strict=True):
        np.testing.assert_allclose(one["glimpses"], made.looked, atol=1e-3)
    greedy = decode(captioner, features, player, rows)
    assert [one.words for one in greedy] != [one.words for one in expected]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode": "best"}, "unknown decoding 'best'"),
        ({"decode": "beam", "beam_width": 0}, "beam width .*0"),
        ({"decode": "beam", "beam_width": 1000}, "beam width 1000 is beyond the vocabulary"),
        ({"decode": "top-k", "top_k": 1000}, "top_k 1000 is beyond the vocabulary"),
        ({"decode": "sample", "temperature": 0.0}, r"temperature .*0\.0"),
    ],
)
def test_wrong_decoding_is_named_and_nothing_is_written(options, photos, change, message):
    with pytest.raises(ValueError, match=message):
        main(Options(photos=photos, **change, **options))
    assert not options["out"].exists()


def test_drawn_words_follow_from_the_seed(options, photos, tmp_path):
    def captions(seed):
        out = tmp_path / f"{seed}"
        main(Options(photos=photos, decode="sample", seed=seed, **{**options, "out": out}))
        return [record["caption"] for record in records(out)]

    assert captions(1) == captions(1) != captions(2)


def test_the_picture_shows_the_photograph_and_the_glimpses(options, photos):
    main(Options(photos=photos[1:2], **options))
    (record,) = records(options["out"])
    words = record["caption"].split()
    looked = np.array(record["glimpses"], np.float32)
    words += ["<end>"] * (len(looked) - len(words))
    photo = Image.open(photos[1]).convert("RGB")
    found = np.asarray(Image.open(options["out"] / record["picture"]))
    assert np.array_equal(found, np.asarray(render_panels(photo, (7, 7), looked, words, columns=7)))
    elsewhere = np.roll(looked, 9, axis=1)
    assert not np.array_equal(found, np.asarray(render_panels(photo, (7, 7), elsewhere, words, columns=7)))


@pytest.mark.parametrize("name", ["sheet.png", "sheet.JPG"])
def test_one_picture_of_all(options, photos, tmp_path, name):
    main(Options(photos=photos, **options))
    each = [Image.open(options["out"] / record["picture"]) for record in records(options["out"])]
    single = tmp_path / "single" / name
    main(Options(photos=photos, **{**options, "out": single}))
    assert list(single.parent.iterdir()) == [single]
    sheet = Image.open(single)
    assert sheet.size == (max(one.width for one in each), sum(one.height for one in each))
    if name.endswith("png"):
        top = 0
        for one in each:
            assert np.array_equal(np.asarray(sheet.crop((0, top, one.width, top + one.height))), np.asarray(one))
            top += one.height


def test_stacked_pictures_lie_one_below_the_other():
    red, blue = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 3), "blue")
    sheet = stack([red, blue])
    assert sheet.size == (4, 5)
    assert sheet.getpixel((3, 1)) == (255, 0, 0)
    assert sheet.getpixel((1, 4)) == (0, 0, 255)
    assert sheet.getpixel((3, 4)) == (0, 0, 0)


def test_photographs_of_one_name_have_pictures_of_their_own(options, tmp_path):
    names = ["a/dog.png", "b/dog.png", "dog-2.png", "c/dog.jpg"]
    paths = [tmp_path / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        noise("RGB", (30, 30), number).save(path)
    assert len(set(unique_names(paths))) == 4
    main(Options(photos=paths, **options))
    made = records(options["out"])
    assert len({record["picture"] for record in made}) == 4
    assert {path.name for path in options["out"].iterdir()} == {*(r["picture"] for r in made), "captions.json"}


def test_many_photographs_keep_their_order(options, tmp_path):
    paths = [tmp_path / f"{row}.png" for row in range(18)]  # more than a batch
    for row, path in enumerate(paths):
        Shapes("val").image(row).save(path)
    main(Options(photos=paths, **options))
    together = [record["caption"] for record in records(options["out"])]
    for row in (15, 16):
        main(Options(photos=[paths[row]], **{**options, "out": tmp_path / str(row)}))
        assert records(tmp_path / str(row))[0]["caption"] == together[row]
    assert len(set(together)) > 1


def test_limit_takes_the_first(options, photos):
    main(Options(photos=photos, limit=2, **options))
    assert [record["photo"] for record in records(options["out"])] == [str(path) for path in photos[:2]]


@pytest.mark.parametrize("content", ["cut", "text", "missing"])
def test_a_photograph_that_cannot_be_read_is_named_and_nothing_is_written(options, photos, tmp_path, content):
    bad = tmp_path / "bad.jpg"
    if content == "cut":
        noise("RGB", (200, 200)).save(bad)
        bad.write_bytes(bad.read_bytes()[:5000])
    elif content == "text":
        bad.write_text("no photograph")
    with pytest.raises(DataError, match=r"bad\.jpg"):
        main(Options(photos=[photos[0], bad], **options))
    assert not options["out"].exists()


def test_missing_models_are_named(options, photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="no captioner 'nothing'"):
        main(Options(photos=photos, **{**options, "captioner": "nothing"}))
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        main(Options(photos=photos, **{**options, "attention": tmp_path / "nothing.safetensors"}))


def test_options_are_read_from_the_command_line():
    line = "a.jpg b.png --captioner shapes --agent soft --out there.png --limit 1"
    assert tyro.cli(Options, args=line.split()) == Options(
        photos=[Path("a.jpg"), Path("b.png")], captioner="shapes", agent="soft", out=Path("there.png"), limit=1
    )


def test_help():
    shown = subprocess.run(
        [sys.executable, "-m", "train.caption", "--help"], capture_output=True, text=True, timeout=300
    )
    assert shown.returncode == 0, shown.stderr
    for option in "seed device threads limit captioner agent attention out decode beam-width temperature".split():
        assert f"--{option}" in shown.stdout
