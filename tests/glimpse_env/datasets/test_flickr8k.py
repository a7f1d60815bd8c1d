"""Flickr8k's official, Kaggle and Karpathy layouts on generated photos; the real set where $GLIMPSE_DATA has it."""

import csv
import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from glimpse_env.core.vocabulary import tokenize
from glimpse_env.datasets.base import CaptionDataset, DataError
from glimpse_env.datasets.photos.flickr8k import SPLIT_LISTS, Flickr8k
from tests.glimpse_env.datasets.test_karpathy import entry, write

# Real names, so that the shipped photo ids know their splits; not in the order of their names.
SPLITS = {
    "train": ["2513260012_03d33305cf.jpg", "1000268201_693b08cb0e.jpg"],
    "val": ["2090545563_a4e66ec76b.jpg"],
    "test": ["7_tests.jpg", "5_tests.jpg"],
}
NAMES = [name for names in SPLITS.values() for name in names]
FORMS = [
    'A "big" dog , number {} , runs .',
    "Two boys' {} toys",
    "It's a T-shirt; {}!",
    "a café {}",
    "A dog , {} .",
]
CAPTIONS = {name: [form.format(number) for form in FORMS] for number, name in enumerate(NAMES)}
LAYOUTS = ["official", "kaggle", "karpathy"]


def photo(number: int) -> Image.Image:
    return Image.new("RGB", (8 + number, 6), (40 * number, 0, 200))


def write_photos(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        photo(number).save(folder / name)


def write_lists(folder: Path) -> None:
    for split, names in SPLITS.items():
        (folder / SPLIT_LISTS[split]).write_text("".join(f"{name}\n" for name in names), "utf-8")


def write_official(root: Path, text_folder: str = "Flickr8k_text") -> Path:
    write_photos(root / "Flicker8k_Dataset")
    text = root / text_folder
    text.mkdir(exist_ok=True)
    lines = [f"{name}#{k}\t{caption}\n" for name in NAMES for k, caption in enumerate(CAPTIONS[name])]
    (text / "Flickr8k.token.txt").write_text("".join(lines), "utf-8")
    write_lists(text)
    return root


def write_kaggle(root: Path) -> Path:
    write_photos(root / "Images")
    with (root / "captions.txt").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "caption"])
        writer.writerows((name, caption) for name in NAMES for caption in CAPTIONS[name])
    return root


def write_karpathy(root: Path) -> Path:
    captions = {name: [{"raw": caption} for caption in CAPTIONS[name]] for name in NAMES}
    images = [entry(name, split, sentences=captions[name]) for split, names in SPLITS.items() for name in names]
    write(root, "flickr8k", "Images", images, photo)
    return root


WRITERS = {"official": write_official, "kaggle": write_kaggle, "karpathy": write_karpathy}


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write_official(tmp_path)


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    return write_kaggle(tmp_path)


def edit_line(path: Path, number: int, *replacements: str) -> None:
    """Put ``replacements`` in the place of line ``number``, counted from 1."""
    lines = path.read_text("utf-8").split("\n")
    lines[number - 1 : number] = replacements
    path.write_text("\n".join(lines), "utf-8")


def line_of(path: Path, number: int) -> str:
    return path.read_text("utf-8").split("\n")[number - 1]


# --- the three layouts are equal


@pytest.mark.filterwarnings("ignore:.*official one is")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_layout_gives_the_same_references_and_photos(tmp_path: Path, layout: str, split: str) -> None:
    dataset = Flickr8k.open(split, WRITERS[layout](tmp_path))
    assert isinstance(dataset, CaptionDataset)
    assert (dataset.name, dataset.split) == ("flickr8k", split)
    expected = sorted(SPLITS[split]) if layout == "kaggle" else SPLITS[split]
    assert [dataset.image_id(row) for row in range(len(dataset))] == expected
    for row, name in enumerate(expected):
        assert dataset.references(row) == [tokenize(caption) for caption in CAPTIONS[name]]
        image = dataset.image(row)
        assert (image.mode, image.size) == ("RGB", (8 + NAMES.index(name), 6))


def test_quoted_commas_and_quotes_of_kaggle_are_part_of_the_caption(kaggle: Path) -> None:
    assert '"A ""big"" dog , number 2 , runs ."' in (kaggle / "captions.txt").read_text("utf-8")
    assert Flickr8k.open("val", kaggle).references(0)[0] == ["a", "big", "dog", "number", "2", "runs"]


def test_official_text_files_may_lie_in_the_root(tmp_path: Path) -> None:
    assert len(Flickr8k.open("train", write_official(tmp_path, text_folder="."))) == 2


def test_official_images_may_lie_in_images(official: Path) -> None:
    (official / "Flicker8k_Dataset").rename(official / "Images")
    assert len(Flickr8k.open("train", official)) == 2


def test_official_captions_come_in_the_order_of_their_numbers(official: Path) -> None:
    tokens = official / "Flickr8k_text" / "Flickr8k.token.txt"
    tokens.write_text("\n".join(reversed(tokens.read_text("utf-8").splitlines())), "utf-8")
    assert Flickr8k.open("val", official).references(0) == [tokenize(caption) for caption in CAPTIONS[NAMES[2]]]


def test_the_odd_name_of_the_official_file_does_no_harm(official: Path) -> None:
    with (official / "Flickr8k_text" / "Flickr8k.token.txt").open("a", encoding="utf-8") as file:
        file.write("2258277193_586949ec62.jpg.1#0\tpeople waiting for the subway\n")
    assert len(Flickr8k.open("train", official)) == 2


@pytest.mark.parametrize("layout", ["official", "kaggle"])
def test_byte_order_mark_and_crlf_change_nothing(tmp_path: Path, layout: str) -> None:
    root = WRITERS[layout](tmp_path)
    before = Flickr8k.open("train", root)
    for path in root.rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    after = Flickr8k.open("train", root)
    assert [after.references(row) for row in range(2)] == [before.references(row) for row in range(2)]
    assert after.fingerprint() == before.fingerprint()


def test_layouts_go_official_then_kaggle_then_karpathy(tmp_path: Path) -> None:
    write_karpathy(tmp_path)
    for caption, name in (("from kaggle", "captions.txt"), ("from official", "Flickr8k.token.txt")):
        form = "{},{}" if name == "captions.txt" else "{}#0\t{}"
        header = ["image,caption"] if name == "captions.txt" else []
        (tmp_path / name).write_text("\n".join([*header, *(form.format(photo, caption) for photo in NAMES)]), "utf-8")
    write_lists(tmp_path)
    assert Flickr8k.open("val", tmp_path).references(0) == [["from", "official"]]
    (tmp_path / "Flickr8k.token.txt").unlink()
    assert Flickr8k.open("val", tmp_path).references(0) == [["from", "kaggle"]]
    (tmp_path / "captions.txt").unlink()
    assert Flickr8k.open("val", tmp_path).references(0)[1:2] == [["two", "boys", "2", "toys"]]


# --- Kaggle's splits


def test_kaggle_test_split_warns_that_it_is_not_the_official_one(kaggle: Path) -> None:
    with pytest.warns(UserWarning, match=r"1,000 of these.*Flickr_8k\.testImages\.txt beside .*captions\.txt"):
        Flickr8k.open("test", kaggle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Flickr8k.open("train", kaggle)


def test_kaggle_takes_the_lists_that_lie_beside_it(kaggle: Path) -> None:
    write_lists(kaggle)
    (kaggle / SPLIT_LISTS["test"]).write_text(f"{NAMES[4]}\n{NAMES[0]}\n", "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = Flickr8k.open("test", kaggle)
    assert [test.image_id(row) for row in range(len(test))] == [NAMES[4], NAMES[0]]


def test_kaggle_test_split_leaves_out_the_images_of_a_train_list(kaggle: Path) -> None:
    (kaggle / SPLIT_LISTS["train"]).write_text(SPLITS["test"][0], "utf-8")
    with pytest.warns(UserWarning, match="3 images"):
        test = Flickr8k.open("test", kaggle)
    assert SPLITS["test"][0] not in {test.image_id(row) for row in range(len(test))}


def test_kaggle_split_without_images_is_an_error(kaggle: Path) -> None:
    for name in SPLITS["test"]:
        (kaggle / "Images" / name).unlink()
    edit_line(kaggle / "captions.txt", 1, "image,caption", f"{NAMES[0]},a dog")
    captions = kaggle / "captions.txt"
    captions.write_text("".join(f"{line}\n" for line in captions.read_text("utf-8").splitlines()[:17]), "utf-8")
    with pytest.raises(DataError, match=r"captions\.txt names no image of the test split"):
        Flickr8k.open("test", kaggle)


def test_kaggle_allows_repeats_up_to_five_captions(kaggle: Path) -> None:
    captions = kaggle / "captions.txt"
    edit_line(captions, 3, line_of(captions, 2))
    first, second, *_ = Flickr8k.open("train", kaggle).references(1)  # of NAMES[0], whose captions come first
    assert first == second
    edit_line(captions, 4, line_of(captions, 4), f"{NAMES[0]},a sixth one")
    with pytest.raises(DataError, match=r"captions\.txt, line 3: .*already at .*line 2; remove one"):
        Flickr8k.open("train", kaggle)


# --- photos


@pytest.mark.parametrize("damage", [b"", b"not an image", 100, 400])
def test_a_damaged_photo_is_named_with_its_cure(official: Path, damage: bytes | int) -> None:
    path = official / "Flicker8k_Dataset" / NAMES[0]
    path.write_bytes(path.read_bytes()[:damage] if isinstance(damage, int) else damage)
    with pytest.raises(DataError, match=rf"{NAMES[0]} cannot be read .*fetch the file again or remove .*trainImages"):
        Flickr8k.open("train", official).image(0)


def test_a_photo_cut_off_in_its_pixels_is_not_shown_half(official: Path) -> None:
    path = official / "Flicker8k_Dataset" / NAMES[0]
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 300])
    with pytest.raises(DataError, match=f"{NAMES[0]} cannot be read as an image .*truncated"):
        Flickr8k.open("train", official).image(0)


def test_a_removed_photo_is_named(official: Path) -> None:
    dataset = Flickr8k.open("train", official)
    (official / "Flicker8k_Dataset" / NAMES[1]).unlink()
    with pytest.raises(DataError, match=f"{NAMES[1]} is missing; fetch"):
        dataset.image(1)
    with pytest.raises(DataError, match=f"{NAMES[1]} is missing; fetch"):
        dataset.fingerprint()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [10, 30])  # an error and a warning for Pillow: the photo has 48 pixels
def test_an_enormous_photo_is_refused(official: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=f"{NAMES[0]} cannot be read as an image .*pixels"):
        Flickr8k.open("train", official).image(0)


def test_a_photo_is_turned_upright(official: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("L", (10, 4)).save(official / "Flicker8k_Dataset" / NAMES[0], exif=exif)
    image = Flickr8k.open("train", official).image(0)
    assert (image.size, image.mode) == ((4, 10), "RGB")


def test_fingerprint_follows_files_order_and_split(official: Path) -> None:
    before = Flickr8k.open("train", official).fingerprint()
    assert Flickr8k.open("train", official).fingerprint() == before
    assert Flickr8k.open("test", official).fingerprint() != before
    train_list = official / "Flickr8k_text" / SPLIT_LISTS["train"]
    train_list.write_text("\n".join(reversed(SPLITS["train"])), "utf-8")
    assert Flickr8k.open("train", official).fingerprint() != before
    train_list.write_text("\n".join(SPLITS["train"]), "utf-8")
    assert Flickr8k.open("train", official).fingerprint() == before
    os.utime(official / "Flicker8k_Dataset" / NAMES[0], ns=(1, 1))
    assert Flickr8k.open("train", official).fingerprint() != before


def test_references_can_be_changed_without_changing_the_dataset(official: Path) -> None:
    dataset = Flickr8k.open("val", official)
    dataset.references(0)[0].append("cat")
    dataset.references(0).clear()
    assert dataset.references(0)[0] == tokenize(CAPTIONS[NAMES[2]][0])


# --- bad input


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data folder '.*nowhere'; set data_root= or \$GLIMPSE_DATA"):
        Flickr8k.open("train", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"token\.txt.*captions\.txt.*dataset_flickr8k\.json.*GLIMPSE_DATA"):
        Flickr8k.open("train", tmp_path)
    (tmp_path / "captions.txt").write_text("image,caption\n")
    with pytest.raises(FileNotFoundError, match=r"no Flickr8k images under .*Images/\*\.jpg or Flicker8k_Dataset"):
        Flickr8k.open("train", tmp_path)


def test_unknown_split(official: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; expected one of train, val, test"):
        Flickr8k.open("dev", official)


def test_missing_split_list(official: Path) -> None:
    (official / "Flickr8k_text" / SPLIT_LISTS["test"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"no Flickr_8k\.testImages\.txt under .*the test split"):
        Flickr8k.open("test", official)
    assert len(Flickr8k.open("val", official)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 7 is blank; remove the line"),
        (" \t", "line 7 is blank; remove the line"),
        (f"{NAMES[1]}#1\t", "line 7: the caption '' has no words"),
        (f"{NAMES[1]}#1\t . !", "line 7: the caption '. !' has no words"),
        (f"{NAMES[0]}#2\ta dog", "line 7: .*#2 stands already at .*token.txt, line 3"),
        (f"{NAMES[1]}#1 a dog", "line 7: .* is not of the form NAME.jpg#K<TAB>caption"),
        (f"{NAMES[1]}\ta dog", "line 7: .* is not of the form"),
        ("notes#1\ta dog", "line 7: .* is not of the form"),
    ],
)
def test_bad_line_in_the_official_captions(official: Path, line: str, message: str) -> None:
    edit_line(official / "Flickr8k_text" / "Flickr8k.token.txt", 7, line)
    with pytest.raises(DataError, match=rf"Flickr8k\.token\.txt, {message}"):
        Flickr8k.open("val", official)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 7 is blank; remove the line"),
        (f"{NAMES[1]},", "line 7: the caption '' has no words"),
        (f'{NAMES[1]},"..."', "line 7: the caption '...' has no words"),
        (f"{NAMES[1]},a dog, running", "line 7: 3 columns, expected 2"),
        (NAMES[1], "line 7: 1 columns, expected 2"),
        (f'{NAMES[1]},"a dog', "line 7: not CSV"),
        ("9_elsewhere.jpg,a dog", "line 7: image '9_elsewhere.jpg' is not in .*Images"),
    ],
)
def test_bad_line_in_the_kaggle_captions(kaggle: Path, line: str, message: str) -> None:
    edit_line(kaggle / "captions.txt", 7, line)
    with pytest.raises(DataError, match=rf"captions\.txt, {message}"):
        Flickr8k.open("val", kaggle)


@pytest.mark.parametrize("text", ["", f"{NAMES[0]},a dog\n", "caption,image\n"])
def test_bad_header_of_the_kaggle_captions(kaggle: Path, text: str) -> None:
    (kaggle / "captions.txt").write_text(text, "utf-8")
    with pytest.raises(DataError, match=r"captions\.txt, line 1: expected the header 'image,caption'"):
        Flickr8k.open("train", kaggle)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "line 2 is blank"),
        ("notes", "line 2: 'notes' is not the name of an image"),
        (f"../{NAMES[1]}", "line 2: .* is not the name of an image"),
        (NAMES[0], f"line 2: image '{NAMES[0]}' stands already at .*trainImages.txt, line 1"),
        ("9_gone.jpg", "line 2: image '9_gone.jpg' is not in .*Flicker8k_Dataset"),
    ],
)
@pytest.mark.parametrize("layout", ["official", "kaggle"])
def test_bad_line_in_a_split_list(tmp_path: Path, layout: str, line: str, message: str) -> None:
    root = WRITERS[layout](tmp_path)
    if layout == "kaggle":
        write_lists(root)
        message = message.replace("Flicker8k_Dataset", "Images")
    path = next(root.rglob(SPLIT_LISTS["train"]))
    edit_line(path, 2, line)
    with pytest.raises(DataError, match=rf"Flickr_8k\.trainImages\.txt, {message}"):
        Flickr8k.open("train", root)


def test_empty_split_list(official: Path) -> None:
    (official / "Flickr8k_text" / SPLIT_LISTS["val"]).write_text("")
    with pytest.raises(DataError, match=r"Flickr_8k\.devImages\.txt names no image of the val split"):
        Flickr8k.open("val", official)


@pytest.mark.parametrize("layout", ["official", "kaggle"])
def test_image_without_captions(tmp_path: Path, layout: str) -> None:
    root = WRITERS[layout](tmp_path)
    path = next(path for path in root.rglob("*.txt") if path.name in ("Flickr8k.token.txt", "captions.txt"))
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(NAMES[1])), "utf-8")
    with pytest.raises(DataError, match=rf"image '{NAMES[1]}' has no captions in .*{path.name}"):
        Flickr8k.open("train", root)
    assert len(Flickr8k.open("val", root)) == 1


def test_text_that_is_not_utf8(official: Path) -> None:
    path = official / "Flickr8k_text" / "Flickr8k.token.txt"
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3].replace("é".encode(), b"\xe9")
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    with pytest.raises(DataError, match=r"Flickr8k\.token\.txt, line 4: byte 0xe9 is not UTF-8"):
        Flickr8k.open("train", official)


# --- the real photographs

REAL = Path(os.environ.get("GLIMPSE_DATA", "")) / "flickr8k"


@pytest.mark.skipif(
    not ("GLIMPSE_DATA" in os.environ and (REAL / "Flicker8k_Dataset").is_dir()),
    reason="the official Flickr8k is not here: set GLIMPSE_DATA to the folder that holds flickr8k/Flicker8k_Dataset",
)
class TestRealFlickr8k:
    @pytest.mark.parametrize(("split", "images"), [("train", 6000), ("val", 1000)])
    def test_official_splits(self, split: str, images: int) -> None:
        dataset = Flickr8k.open(split, REAL)
        assert len(dataset) == images
        assert len({dataset.image_id(row) for row in range(images)}) == images
        assert {len(dataset.references(row)) for row in range(images)} == {5}
        assert dataset.image(images - 1).mode == "RGB"

    @pytest.mark.skipif(any(REAL.rglob(SPLIT_LISTS["test"])), reason="this copy has the test split")
    def test_absent_test_split(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"Flickr_8k\.testImages\.txt"):
            Flickr8k.open("test", REAL)

    def test_shipped_ids_give_the_same_splits_and_words_in_the_kaggle_layout(self, tmp_path: Path) -> None:
        official = {split: Flickr8k.open(split, REAL) for split in ("train", "val")}
        (tmp_path / "Images").symlink_to(REAL / "Flicker8k_Dataset")
        photos = {path.name for path in (REAL / "Flicker8k_Dataset").iterdir()}
        tokens = next(REAL.rglob("Flickr8k.token.txt")).read_text("utf-8").splitlines()
        with (tmp_path / "captions.txt").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "caption"])
            for line in tokens:
                number, caption = line.split("\t")
                name = number.partition("#")[0]
                if name in photos:
                    writer.writerow([name, caption])
        for split, expected in official.items():
            kaggle = Flickr8k.open(split, tmp_path)
            assert {kaggle.image_id(row): kaggle.references(row) for row in range(len(kaggle))} == {
                expected.image_id(row): expected.references(row) for row in range(len(expected))
            }
