"""Caption your own photographs, with a picture of every glimpse.

One panel a word: a box where a hard agent looked, a heat map of a soft agent's weights.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from agents.base import Attention
from agents.loading import make_attention_agent, own_captioner, shipped_attention
from glimpse_env.datasets import DATASETS, DataError, longest_caption
from glimpse_env.datasets.photos.files import UNREAD, read_photograph
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner, load_captioner
from glimpse_env.rollout.beam_search import Captioned
from train.caption.gallery import Album
from train.common.options import prepare
from train.evaluate.decoding_options import DecodingOptions

BATCH = 16  # photographs at once
DRAWN = 1024  # pixels a side, at most, that are kept of a photograph to draw on


@dataclass
class Options(DecodingOptions):
    """Caption photographs."""

    photos: tyro.conf.Positional[list[Path]] = tyro.MISSING
    """Image files of any format and size, and folders, which are searched with all that is in them."""
    captioner: str = "flickr8k"
    """Shipped captioner or file."""
    agent: Attention = "hard"
    """Look at one location a word, or everywhere at once."""
    attention: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Attention file; by default the one shipped with the captioner."""
    out: Path = Path("runs/captions")
    """A folder for a picture of each photograph, contact sheets and captions.json; or one picture, if the name ends in
    .png or .jpg."""


def find_photographs(named: Sequence[Path], out: Path) -> list[Path]:
    """The files that are named, and those in folders that are named, each folder's in order of their paths.

    In a folder a file counts whose name ends as a format that Pillow reads; hidden files and the folder ``out`` are
    passed over.

    Raises:
        FileNotFoundError: nothing is named, or a folder holds no photograph.
    """
    if not named:
        raise FileNotFoundError("no photograph is named; name files, or folders of them")
    photos: list[Path] = []
    for path in named:
        found = sorted(_in_folder(path, out)) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(
                f"no photograph in the folder '{path}' or below; expected files such as *.jpg, *.png or *.webp"
            )
        photos += found
    return photos


def _in_folder(folder: Path, out: Path) -> Iterable[Path]:
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in {*Image.OPEN} - UNREAD}
    ours = out.resolve()
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = [name for name in folders if not name.startswith(".") and (here / name).resolve() != ours]
        yield from (here / name for name in files if not name.startswith(".") and Path(name).suffix.lower() in endings)


def read(path: Path, album: Album) -> Image.Image | None:
    """A photograph, or None, having said why, also to the album."""
    try:
        return read_photograph(path, "it is skipped")
    except DataError as error:
        tqdm.write(str(error), file=sys.stderr)
        album.skip(path, str(error))
        return None


def caption(
    options: DecodingOptions, kind: Attention, attention: Path, captioner: Captioner, pixels: Sequence[Image.Image]
) -> list[Captioned]:
    """Look at pictures and say what they show.

    Args:
        options: how words and glimpses are chosen.
        kind: hard or soft.
        attention: its file.
        captioner: says the words.
        pixels: the pictures.
    """
    features = FeatureTable(captioner.encoder.encode(pixels).half().cpu().numpy())
    agent = make_attention_agent(kind, attention, captioner, features, options.device, options.seed)
    longest = longest_caption(captioner.dataset)
    return options.make_captions(captioner, features, agent, range(len(pixels)), longest, None)


def main(options: Options) -> None:
    """Caption, draw and write, a batch at a time.

    Raises:
        SystemExit: photographs could not be read; with their number and names, when all others are done.
    """
    prepare(options)
    photos = find_photographs(options.photos, options.out)[: options.limit]
    album = Album(options.out, photos)
    name = options.captioner
    if options.attention is None and name in DATASETS:  # a file, or one that is named whole, is taken as it is
        name = own_captioner(options.agent, name)
    captioner = load_captioner(name).to(options.device)
    attention = options.attention or shipped_attention(options.agent, captioner.dataset)
    side = captioner.encoder.config.image_size
    with album, tqdm(total=len(photos), desc="photographs", unit="photo", leave=False) as bar:
        for start in range(0, len(photos), BATCH):
            batch: list[tuple[int, Image.Image, Image.Image]] = []
            for number, path in enumerate(photos[start : start + BATCH], start):
                photo = read(path, album)
                if photo is not None:
                    # Twenty megapixels need not be kept until the batch is full.
                    scaled = photo.resize((side, side), Image.Resampling.BICUBIC)
                    photo.thumbnail((DRAWN, DRAWN), Image.Resampling.LANCZOS)
                    batch.append((number, photo, scaled))
            # Each batch draws from a seed of its own: what is drawn for one photograph is not drawn again for another.
            own = replace(options, seed=int(np.random.SeedSequence([options.seed, start]).generate_state(1)[0]))
            shown = [scaled for *_, scaled in batch]
            made = caption(own, options.agent, attention, captioner, shown) if batch else []
            for (number, photo, _), one in zip(batch, made, strict=True):
                album.add(number, photos[number], photo, one, captioner.encoder.config.grid)
                tqdm.write(f"{photos[number]}: {' '.join(one.words)}")
            bar.update(len(photos[start : start + BATCH]))
    done = len(photos) - len(album.skipped)
    if done:
        print(f"picture: {album.out}" if album.single else f"pictures, contact sheets and captions.json: {album.out}")
    if album.skipped:
        names = ", ".join(album.skipped)
        raise SystemExit(
            f"{len(album.skipped)} of {len(photos)} photographs could not be read and were skipped: {names}"
        )
