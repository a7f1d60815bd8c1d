"""Flickr8k (Hodosh, Young and Hockenmaier 2013) in its official layout, Kaggle's or Karpathy's.

All three give the same words for the same captions.
"""

from __future__ import annotations

import csv
import json
import re
import warnings
from pathlib import Path

from glimpse_env.datasets.base import DataError, Split, check_split, data_folder
from glimpse_env.datasets.photos import files, karpathy

Captions = dict[str, list[list[str]]]  # image name -> its captions as lists of words
Listing = list[tuple[str, str]]  # (image name, where it is listed), in row order

TOKEN_FILE, CSV_FILE, TEXT_FOLDER = "Flickr8k.token.txt", "captions.txt", "Flickr8k_text"
SPLIT_LISTS: dict[Split, str] = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
_CAPTIONS_PER_IMAGE = 5

# The official file also has captions of "2258277193_586949ec62.jpg.1", an image that no split lists.
_TOKEN_LINE = re.compile(rf"({files.IMAGE_NAME.pattern}(?:\.\d+)?)#(\d{{1,9}})\t(.*)", re.IGNORECASE)


class Flickr8k(files.PhotographDataset):
    """One split of Flickr8k: photographs with five captions each."""

    @classmethod
    def open(cls, split: str, data_root: str | Path) -> Flickr8k:
        """Open one split in the first of these layouts that ``data_root`` holds.

        1. Official: ``Flicker8k_Dataset/*.jpg`` (sic), and in ``data_root`` or its ``Flickr8k_text/`` the files
           ``Flickr8k.token.txt`` and ``Flickr_8k.{train,dev,test}Images.txt``. Rows in the order of the split's list.
        2. Kaggle: ``Images/*.jpg`` and ``captions.txt``. Rows as above where the split's list is in ``data_root``. Else
           the shipped photo ids define train and val, the remaining images are test, and rows are sorted by name.
        3. Karpathy: ``dataset_flickr8k.json``; see :class:`~glimpse_env.datasets.photos.karpathy.Karpathy`.

        Args:
            split: train, val (the official "dev") or test.
            data_root: the folder that holds one of the layouts.

        Raises:
            ValueError: the split is unknown.
            FileNotFoundError: the folder, its captions, its photos or the split's list do not exist.
            DataError: one of the files is malformed; the message names the file and the line.
        """
        known, root = check_split(split), data_folder(data_root, "flickr8k")
        karpathy_file = root / karpathy.split_file("flickr8k")
        if text_file := _text_file(root, TOKEN_FILE):
            folder = files.PhotoFolder.find(root, ("Flicker8k_Dataset", "Images"), "Flickr8k")
            captions = _read_token_file(text_file)
            source, listing = _official_listing(root, known)
        elif (text_file := root / CSV_FILE).is_file():
            folder = files.PhotoFolder.find(root, ("Images", "Flicker8k_Dataset"), "Flickr8k")
            captions = _read_captions_csv(text_file, folder)
            source, listing = _kaggle_listing(root, known, folder)
        elif karpathy_file.is_file():
            return cls("flickr8k", known, karpathy.read_photographs("flickr8k", known, root), karpathy_file)
        else:
            raise FileNotFoundError(
                f"no Flickr8k captions under '{root}'; expected {TOKEN_FILE} (official, also in {TEXT_FOLDER}/), "
                f"{CSV_FILE} (Kaggle) or {karpathy_file.name} (Karpathy) (set data_root= or $GLIMPSE_DATA)"
            )
        photographs = []
        for name, where in listing:
            path = folder.photo(name, where)
            if name not in captions:
                raise DataError(f"{where}: image {name!r} has no captions in {text_file}; add them or remove it")
            photographs.append(files.Photograph(name, path, captions[name]))
        return cls("flickr8k", known, photographs, source)


def _read_token_file(path: Path) -> Captions:
    """The captions of the official file, lines of ``NAME.jpg#K<TAB>caption``, in the order of K."""
    numbered: dict[str, dict[int, list[str]]] = {}
    lines: dict[tuple[str, int], str] = {}
    for where, line in files.read_lines(path):
        if not (match := _TOKEN_LINE.fullmatch(line)):
            raise DataError(f"{where}: {line!r} is not of the form NAME.jpg#K<TAB>caption; mend or remove the line")
        name, number, caption = match[1], int(match[2]), match[3]
        if (first := lines.setdefault((name, number), where)) != where:
            raise DataError(f"{where}: {name}#{number} stands already at {first}; remove one of the two lines")
        numbered.setdefault(name, {})[number] = files.caption_words(caption, where)
    return {name: [captions[number] for number in sorted(captions)] for name, captions in numbered.items()}


def _read_captions_csv(path: Path, folder: files.PhotoFolder) -> Captions:
    """The captions of Kaggle's file, CSV with the header ``image,caption``, in the order of the file.

    Nine images have two identical captions, so a repeat is an error only in an image of more than five captions.
    """
    lines = files.read_lines(path)
    if not lines or lines[0][1].strip() != "image,caption":
        raise DataError(f"{path}, line 1: expected the header 'image,caption'; put it there")
    captions: Captions = {}
    occurrences: dict[tuple[str, str], list[str]] = {}
    for where, line in lines[1:]:
        name, caption = _csv_columns(line, where)
        if name not in folder.names:
            raise DataError(f"{where}: image {name!r} is not in '{folder.path}'; fetch it or remove the line")
        captions.setdefault(name, []).append(files.caption_words(caption, where))
        occurrences.setdefault((name, caption.strip()), []).append(where)
    for (name, _), repeats in occurrences.items():
        if len(repeats) > 1 and len(captions[name]) > _CAPTIONS_PER_IMAGE:
            raise DataError(f"{repeats[1]}: the same caption of {name!r} stands already at {repeats[0]}; remove one")
    return captions


def _csv_columns(line: str, where: str) -> tuple[str, str]:
    """Image and caption of one line; lines are parsed one by one, so that an open quote cannot span several."""
    try:
        columns = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise DataError(f"{where}: not CSV ({error}); mend the quotes") from None
    if len(columns) != 2:
        raise DataError(f"{where}: {len(columns)} columns, expected 2: image,caption; quote a caption that has commas")
    return columns[0], columns[1]


def _read_split_list(path: Path) -> Listing:
    """The image names of a split's list, one a line, in its order."""
    names: dict[str, str] = {}
    for where, line in files.read_lines(path):
        name = line.strip()
        if not files.IMAGE_NAME.fullmatch(name):
            raise DataError(f"{where}: {name!r} is not the name of an image; expected one like 123_abc.jpg")
        if (first := names.setdefault(name, where)) != where:
            raise DataError(f"{where}: image {name!r} stands already at {first}; remove one of the two lines")
    return list(names.items())


def _official_listing(root: Path, split: Split) -> tuple[Path, Listing]:
    """The split's list file and its images."""
    if not (path := _text_file(root, SPLIT_LISTS[split])):
        raise FileNotFoundError(
            f"no {SPLIT_LISTS[split]} under '{root}', so the {split} split of Flickr8k is not known; "
            f"put the file there or in {TEXT_FOLDER}/"
        )
    return path, _read_split_list(path)


def _kaggle_listing(root: Path, split: Split, folder: files.PhotoFolder) -> tuple[Path, Listing]:
    """The file that defines the split, and its images."""
    if _text_file(root, SPLIT_LISTS[split]):
        return _official_listing(root, split)
    source = root / CSV_FILE
    if split == "test":
        excluded = {name for listed in _shipped_ids() for name, _ in _kaggle_listing(root, listed, folder)[1]}
        names = folder.names - excluded
        if names:
            warnings.warn(
                f"{len(names)} images are in neither train nor val and make up this test split; the official one is "
                f"1,000 of these: put {SPLIT_LISTS[split]} beside {source} for the exact one",
                stacklevel=3,
            )
    else:
        ids = _shipped_ids()[split]
        names = frozenset(name for name in folder.names if name.partition("_")[0] in ids)
    return source, [(name, str(folder.path)) for name in sorted(names)]


def _shipped_ids() -> dict[Split, set[str]]:
    """Flickr's ids of the photos of train and val: their names up to the first underscore."""
    shipped: dict[Split, list[int]] = json.loads(Path(__file__).with_name("flickr8k_splits.json").read_text("utf-8"))
    return {split: set(map(str, ids)) for split, ids in shipped.items()}


def _text_file(root: Path, name: str) -> Path | None:
    """One of the official text files, in ``root`` or in its ``Flickr8k_text/``."""
    return next((path for path in (root / name, root / TEXT_FOLDER / name) if path.is_file()), None)


WORLD = files.photo_world(
    "flickr8k",
    "Glimpse/Flickr8k-v0",
    Flickr8k.open,
    hyperparameters={"min_count": 4},
    report_split="val",
    training_data="Flickr8k (Hodosh, Young and Hockenmaier 2013), five captions a photograph, in its official splits: "
    "6,000 photographs to train on, 1,000 of val to choose the weights that are kept, so that figures on val are a "
    "little kind; no figure here is of the 1,000 of test. The photographs are for research and not part of this "
    "repository.",
    limits=(
        "It is for research on attention, not for use: what it says is often wrong, and it says it in the same voice. "
        "BLEU does not know whether a caption is true. Do not describe pictures with it to people who cannot see them.",
        "Its world is that of Flickr8k: people and dogs doing something, mostly outdoors, described in English by "
        "people in the United States. Indoor things, text, crowds, other animals and places other than those are named "
        "by what comes closest there.",
        "It names sex and age from looks, as the captions it learned from do, and repeats what those take for granted. "
        "It is not to be used to tell anything about a person.",
        "The words it knows are the {words} that are frequent enough in the training captions.",
    ),
    licence="MIT, as the code. The photographs it learned from are for research.",
)
