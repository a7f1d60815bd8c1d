"""Captions of one's own photographs, on generated pictures."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tyro
from PIL import Image

import glimpse_env
from agents.attention import load_attention
from agents.loading import load_agent, make_attention_agent
from glimpse_env.datasets import DataError, Shapes
from glimpse_env.datasets.photos.files import read_photograph
from glimpse_env.features.build import open_features
from glimpse_env.models.captioner import load_captioner, save_captioner
from glimpse_env.rendering.panels import render_panels
from glimpse_env.rollout.beam_search import BeamSearch
from glimpse_env.rollout.decode import decode
from tests.conftest import build_captioner
from train.caption.gallery import FORMAT, ONE_PICTURE, SHEET, stack, unique_names
from train.caption.runner import Options, find_photographs, main


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


def read_captions(folder: Path) -> dict:
    captions = json.loads((folder / "captions.json").read_text())
    assert captions["format"] == FORMAT
    return captions


def records(folder: Path) -> list[dict]:
    return read_captions(folder)["captions"]


@pytest.mark.parametrize("agent", ["hard", "soft"])
def test_a_folder_of_pictures_and_captions(options, photos, agent, capsys):
    main(Options(photos=photos, agent=agent, **options))
    out = options["out"]
    captioned = records(out)
    assert [record["photo"] for record in captioned] == [str(path) for path in photos]
    names = {*(f"{path.stem}.png" for path in photos), "captions.json", "contact-sheet-1.jpg"}
    assert {path.name for path in out.iterdir()} == names
    printed = capsys.readouterr().out
    vocabulary = load_captioner(options["captioner"]).vocabulary
    for path, record in zip(photos, captioned, strict=True):
        words = record["caption"].split()
        glimpses = np.array(record["glimpses"])
        assert all(word in vocabulary for word in words)
        assert f"{path}: {record['caption']}" in printed
        assert glimpses.shape in ((len(words), 49), (len(words) + 1, 49))
        np.testing.assert_allclose(glimpses.sum(1), 1, atol=1e-4)
        assert (set(np.unique(glimpses)) == {0, 1}) == (agent == "hard")
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


def test_a_captioner_of_a_world_that_is_not_here_writes_up_to_20_words(options, photos, attention_file, tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_captioner(build_captioner(dataset="not-registered"), foreign)
    main(Options(photos=photos[:1], **{**options, "captioner": str(foreign)}))
    (record,) = records(options["out"])
    assert len(record["glimpses"]) <= 20


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
    player = make_attention_agent(agent, load_attention(attention_file), features)
    expected = decode(captioner, features, player, rows, BeamSearch(4, 0.6))
    captioned = records(options["out"])
    assert [record["caption"] for record in captioned] == [" ".join(caption.words) for caption in expected]
    for record, caption in zip(captioned, expected, strict=True):
        np.testing.assert_allclose(record["glimpses"], caption.glimpses, atol=1e-3)
    greedy = decode(captioner, features, player, rows)
    assert [caption.words for caption in greedy] != [caption.words for caption in expected]


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
    def captions(name, seed):
        out = tmp_path / name
        main(Options(photos=photos, decode="sample", seed=seed, **{**options, "out": out}))
        return [record["caption"] for record in records(out)]

    assert captions("a", 1) == captions("b", 1) != captions("c", 2)


def test_earlier_captions_are_not_written_over(options, photos):
    main(Options(photos=photos[:1], **options))
    before = {path.name: path.read_bytes() for path in options["out"].iterdir()}
    with pytest.raises(FileExistsError, match="holds captions already; name another folder, or remove that one"):
        main(Options(photos=photos[1:2], **options))
    assert {path.name: path.read_bytes() for path in options["out"].iterdir()} == before


def test_the_picture_shows_the_photograph_and_the_glimpses(options, photos):
    main(Options(photos=photos[1:2], **options))
    (record,) = records(options["out"])
    words = record["caption"].split()
    glimpses = np.array(record["glimpses"], np.float32)
    words += ["<end>"] * (len(glimpses) - len(words))
    photo = Image.open(photos[1]).convert("RGB")
    pixels = np.asarray(Image.open(options["out"] / record["picture"]))
    assert np.array_equal(pixels, np.asarray(render_panels(photo, (7, 7), glimpses, words, columns=7)))
    elsewhere = np.roll(glimpses, 9, axis=1)
    assert not np.array_equal(pixels, np.asarray(render_panels(photo, (7, 7), elsewhere, words, columns=7)))


@pytest.mark.parametrize("name", ["sheet.png", "sheet.JPG"])
def test_one_picture_of_all(options, photos, tmp_path, name):
    main(Options(photos=photos, **options))
    pictures = [Image.open(options["out"] / record["picture"]) for record in records(options["out"])]
    single = tmp_path / "single" / name
    main(Options(photos=photos, **{**options, "out": single}))
    assert list(single.parent.iterdir()) == [single]
    sheet = Image.open(single)
    assert sheet.size == (max(picture.width for picture in pictures), sum(picture.height for picture in pictures))
    if name.endswith("png"):
        top = 0
        for picture in pictures:
            assert np.array_equal(
                np.asarray(sheet.crop((0, top, picture.width, top + picture.height))), np.asarray(picture)
            )
            top += picture.height


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
    captioned = records(options["out"])
    assert len({record["picture"] for record in captioned}) == 4
    names = {*(record["picture"] for record in captioned), "captions.json", "contact-sheet-1.jpg"}
    assert {path.name for path in options["out"].iterdir()} == names


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


def spoil(path: Path, content: str) -> None:
    if content == "cut":
        noise("RGB", (200, 200)).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif content == "text":
        path.write_text("no photograph")


@pytest.mark.parametrize("content", ["cut", "text", "missing"])
def test_a_photograph_that_cannot_be_read_is_named_and_skipped(options, photos, tmp_path, content, capsys):
    bad = tmp_path / "bad.jpg"
    spoil(bad, content)
    with pytest.raises(SystemExit, match=r"^1 of 5 photographs could not be read and were skipped: .*bad\.jpg$"):
        main(Options(photos=[*photos[:2], bad, *photos[2:]], **options))
    (skipped,) = read_captions(options["out"])["skipped"]
    assert skipped["photo"] == str(bad)
    assert skipped["why"] in capsys.readouterr().err
    captioned = records(options["out"])
    assert [record["photo"] for record in captioned] == [str(path) for path in photos]
    complete = tmp_path / "whole"
    main(Options(photos=photos, **{**options, "out": complete}))
    assert [record["caption"] for record in records(complete)] == [record["caption"] for record in captioned]


def test_when_none_can_be_read_nothing_is_written(options, tmp_path):
    spoil(tmp_path / "bad.jpg", "text")
    with pytest.raises(SystemExit, match="1 of 1 photographs could not be read"):
        main(Options(photos=[tmp_path / "bad.jpg"], **options))
    assert not options["out"].exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_enormous_photograph_is_refused_by_its_size(options, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    noise("L", (400, 300)).save(tmp_path / "large.png")
    noise("L", (600, 400)).save(tmp_path / "larger.png")
    with pytest.raises(SystemExit, match=r"2 of 6 photographs .*large.png, .*larger.png"):
        main(Options(photos=[tmp_path / "large.png", *photos, tmp_path / "larger.png"], **options))
    errors = capsys.readouterr().err
    assert "large.png cannot be read as an image (400 x 300 pixels, more than 100000); it is skipped" in errors
    assert "larger.png cannot be read as an image (Image size (240000 pixels) exceeds limit" in errors
    assert len(records(options["out"])) == 4


def test_the_exit_status_tells(photos, tmp_path, captioner_file, attention_file):
    def run(name, *paths):
        line = [
            *map(str, paths),
            "--captioner",
            captioner_file,
            "--attention",
            attention_file,
            "--out",
            tmp_path / name,
        ]
        done = subprocess.run(
            [sys.executable, "-m", "train.caption", *map(str, line)], capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stderr

    assert run("good", photos[0])[0] == 0
    status, errors = run("bad", photos[0], tmp_path / "none.jpg")
    assert status == 1
    assert "none.jpg is missing; it is skipped" in errors
    assert errors.strip().endswith(f"1 of 2 photographs could not be read and were skipped: {tmp_path / 'none.jpg'}")


# --- photographs of every kind ----------------------------------------------------------------------------------------


def make_zoo(folder: Path) -> dict[str, Path]:
    """Pictures of one scene, half red and half blue, in every mode and format people have, by kind."""
    scene = Image.new("RGB", (120, 80), (200, 30, 30))
    scene.paste((30, 30, 200), (60, 0, 120, 80))
    folder.mkdir()
    paths: dict[str, Path] = {}

    def save(kind: str, image: Image.Image, name: str, **how) -> None:
        paths[kind] = folder / name
        image.save(paths[kind], **how)

    turned = Image.Exif()
    turned[0x0112] = 6
    grey = np.asarray(scene.convert("L"), np.uint16)
    clear = scene.convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 128))
    save("jpeg", scene, "scene.JPG", quality=95)
    save("upright", scene.transpose(Image.Transpose.ROTATE_90), "turned.jpeg", exif=turned, quality=95)
    save("cmyk", scene.convert("CMYK"), "print.jpg", quality=95)
    save("grey", scene.convert("L"), "grey.png")
    save("grey16", Image.fromarray(grey * 257), "deep.png")
    save("grey16-tiff", Image.fromarray(grey * 257), "deep.tif")
    save("float", Image.fromarray(grey.astype(np.float32) / 255 * 0.9), "float.tiff")
    save("black and white", scene.convert("1"), "bits.png")
    save("palette", scene.quantize(8), "palette.gif")
    save("palette-clear", scene.quantize(8), "clear.png", transparency=0)
    save("alpha", clear, "alpha.webp", lossless=True)
    save("grey-alpha", clear.convert("LA"), "alpha.png")
    for ending in ("gif", "webp", "png"):
        frames = [Image.new("RGB", scene.size, "green"), Image.new("RGB", scene.size, "white")]
        save(f"moving-{ending}", scene, f"moving.{ending}", save_all=True, append_images=frames, duration=50)
    for ending in ("bmp", "ppm", "tga", "tiff", "webp", "jp2", "ico", "pcx"):
        save(ending, scene, f"scene.{ending}")
    save("dot", scene.crop((0, 0, 1, 1)), "dot.png")
    save("line", scene.resize((3000, 1)), "line.png")
    save("large", scene.resize((5400, 3700), Image.Resampling.NEAREST), "large.jpg")
    return paths


def test_a_folder_of_every_kind_of_picture(options, tmp_path):
    paths = make_zoo(tmp_path / "zoo")
    shutil.copy(paths["jpeg"], tmp_path / "zoo" / ".hidden.jpg")
    (tmp_path / "zoo" / "notes.txt").write_text("no photograph")
    (tmp_path / "zoo" / "below" / "further").mkdir(parents=True)
    shutil.copy(paths["jpeg"], tmp_path / "zoo" / "below" / "further" / "copy.jpg")
    main(Options(photos=[tmp_path / "zoo"], **options))
    captioned = records(options["out"])
    assert len(captioned) == len(paths) + 1
    assert [record["photo"] for record in captioned] == sorted(record["photo"] for record in captioned)
    captions = {Path(record["photo"]).relative_to(tmp_path / "zoo"): record["caption"] for record in captioned}
    plain = captions[Path("scene.png" if Path("scene.png") in captions else "scene.bmp")]
    for kind in ("bmp", "ppm", "tga", "tiff", "pcx", "moving-gif", "moving-webp", "moving-png"):
        assert captions[Path(paths[kind].name)] == plain, kind
    assert captions[Path("below/further/copy.jpg")] == captions[Path("scene.JPG")]


@pytest.mark.parametrize(
    ("kind", "red", "blue"),
    [
        *[
            (kind, (200, 30, 30), (30, 30, 200))
            for kind in ("jpeg", "upright", "bmp", "palette", "webp", "jp2", "large")
        ],
        *[(f"moving-{ending}", (200, 30, 30), (30, 30, 200)) for ending in ("gif", "webp", "png")],
        *[(kind, (81, 81, 81), (49, 49, 49)) for kind in ("grey", "grey16", "grey16-tiff")],
        ("float", (81 * 0.9,) * 3, (49 * 0.9,) * 3),
        ("cmyk", (200, 30, 30), (30, 30, 200)),
        ("alpha", (227, 142, 142), (142, 142, 227)),
        ("grey-alpha", (168, 168, 168), (152, 152, 152)),
    ],
)
def test_what_is_read_is_what_is_shown(tmp_path_factory, kind, red, blue):
    zoo = make_zoo(tmp_path_factory.mktemp("zoo") / "zoo")
    photo = read_photograph(zoo[kind])
    assert photo.mode == "RGB"
    assert photo.width / photo.height == pytest.approx(1.5, rel=0.1)
    small = np.asarray(photo.resize((120, 80), Image.Resampling.NEAREST), float)
    np.testing.assert_allclose(small[10:70, 10:50].mean((0, 1)), red, atol=8)
    np.testing.assert_allclose(small[10:70, 70:110].mean((0, 1)), blue, atol=8)


def test_what_is_clear_of_a_palette_lies_on_white(tmp_path):
    photo = read_photograph(make_zoo(tmp_path / "zoo")["palette-clear"])
    assert (np.asarray(photo) == 255).all(-1).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("kind", ["jpeg", "grey16", "palette", "alpha", "tiff", "moving-gif", "jp2", "ico", "upright"])
def test_a_damaged_file_is_an_error_with_a_sentence_whatever_the_damage(tmp_path, kind):
    path = make_zoo(tmp_path / "zoo")[kind]
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.integers(len(content), size=4)] = rng.integers(256, size=4)
        path.write_bytes(damaged[: rng.integers(len(content) // 2, len(content) + 1)].tobytes())
        with contextlib.suppress(DataError):
            assert read_photograph(path).mode == "RGB"


def test_no_photograph_is_no_work(options):
    with pytest.raises(FileNotFoundError, match="no photograph is named"):
        main(Options(photos=[], **options))


def test_a_folder_without_photographs_is_named(options, tmp_path, photos):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photograph")
    with pytest.raises(FileNotFoundError, match=r"no photograph in the folder '.*empty' or below; expected files such"):
        main(Options(photos=[*photos, tmp_path / "empty"], **options))
    assert not options["out"].exists()


def test_own_pictures_in_a_folder_are_passed_over(tmp_path, photos):
    out = photos[0].parent / "captioned"
    out.mkdir()
    shutil.copy(photos[0], out / "alpha.png")
    assert find_photographs([photos[0].parent], out) == sorted(photos)
    assert find_photographs([photos[0].parent], tmp_path / "out") == sorted([*photos, out / "alpha.png"])


# --- where it goes ----------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_refused_before_the_work(options, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("train.caption.runner.load_captioner", lambda name: pytest.fail("worked in vain"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for out, message in (
        (tmp_path / "file", "is a file; name a folder"),
        (tmp_path / "file" / "below", "cannot be written: .*file takes no files"),
        (tmp_path / "file" / "sheet.png", "cannot be written: .*file takes no files"),
        (tmp_path / "folder.png", "is a folder; name a file in it"),
        (Path("/proc/nowhere"), "cannot be written: /proc takes no files"),
    ):  # and, below, a picture of a format that is not written
        if out.parts[:2] == ("/", "proc") and not out.parent.is_dir():
            continue
        with pytest.raises(OSError, match=message):
            main(Options(photos=photos, **{**options, "out": out}))
    for name in ("sheet.gif", "sheet.TIFF"):
        with pytest.raises(ValueError, match=r"is no picture that can be written; let it end in \.png"):
            main(Options(photos=photos, **{**options, "out": tmp_path / name}))
    assert {path.name for path in tmp_path.iterdir()} >= {"file", "folder.png"}
    assert not any(tmp_path.glob("sheet*"))


def test_more_than_one_picture_holds_are_refused_before_the_work(options, photos, tmp_path):
    with pytest.raises(ValueError, match=f"one picture has room for {ONE_PICTURE} photographs, not for 52"):
        main(Options(photos=photos * 13, **{**options, "out": tmp_path / "sheet.png"}))


def test_what_is_done_stays_when_something_goes_wrong(options, tmp_path, monkeypatch):
    monkeypatch.setattr("train.caption.runner.BATCH", 4)
    paths = [tmp_path / f"{row}.png" for row in range(12)]  # three batches
    for row, path in enumerate(paths):
        Shapes("val").image(row).save(path)
    read = []

    def failing(path, cure):
        read.append(path)
        if path == paths[9]:
            raise KeyboardInterrupt
        return read_photograph(path, cure)

    monkeypatch.setattr("train.caption.runner.read_photograph", failing)
    with pytest.raises(KeyboardInterrupt):
        main(Options(photos=paths, **options))
    assert [record["photo"] for record in records(options["out"])] == [str(path) for path in paths[:8]]
    assert all((options["out"] / record["picture"]).is_file() for record in records(options["out"]))
    with Image.open(options["out"] / "contact-sheet-1.jpg") as sheet:
        assert sheet.width == 6 * (320 + 12) + 12


def test_contact_sheets_show_every_photograph(options, tmp_path, monkeypatch):
    monkeypatch.setattr("train.caption.gallery.SHEET", 4)
    monkeypatch.setattr("train.caption.gallery.ACROSS", 3)
    paths = [tmp_path / f"contact-sheet-{row}.png" for row in range(1, 7)]
    for row, path in enumerate(paths):
        Shapes("val").image(row).save(path)
    main(Options(photos=paths, **options))
    first, second = (Image.open(options["out"] / f"contact-sheet-{number}.jpg") for number in (1, 2))
    assert (first.width, second.height) == (3 * (320 + 12) + 12, first.height // 2 + 6)
    assert second.width == 2 * (320 + 12) + 12
    assert len(list(options["out"].glob("*.png"))) == 6
    assert SHEET > 50


def test_a_captioner_file_speaks_with_the_attention_shipped_for_its_dataset(photos, tmp_path):
    shipped = Path(glimpse_env.__file__).parent / "assets" / "shapes.safetensors"
    for name in ("shapes", str(shipped)):
        main(Options(photos=photos, captioner=name, agent="soft", out=tmp_path / Path(name).name))
    named, filed = (records(tmp_path / name) for name in ("shapes", "shapes.safetensors"))
    assert [record["caption"] for record in named] == [record["caption"] for record in filed]


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
    done = subprocess.run(
        [sys.executable, "-m", "train.caption", "--help"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for option in "seed device threads limit captioner agent attention out decode beam-width temperature".split():
        assert f"--{option}" in done.stdout
