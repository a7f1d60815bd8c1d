"""Caption photographs and draw the glimpses: one panel a word, with a box for hard attention, a heat map for soft."""

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

from agents.attention import AdditiveAttention, read_agent_file
from agents.base import AttentionKind
from agents.loading import find_attention, make_attention_agent, shipped_attention
from glimpse_env.datasets import WORLDS, DataError, DatasetSpec
from glimpse_env.datasets.photos.files import UNREADABLE_FORMATS, read_photograph
from glimpse_env.features.table import FeatureTable
from glimpse_env.models.captioner import Captioner, load_captioner
from glimpse_env.rollout.beam_search import Captioned
from train.caption.gallery import Gallery
from train.common.options import prepare
from train.evaluate.decoding_options import DecodingOptions

BATCH = 16  # photographs at once
DRAWN_SIDE = 1024  # pixels of the longer side of a photograph that is drawn on, at most


@dataclass
class Options(DecodingOptions):
    """Caption photographs."""

    photos: tyro.conf.Positional[list[Path]] = tyro.MISSING
    """Image files of any format and size, and folders, which are searched with all that is in them."""
    captioner: str = "flickr8k"
    """Shipped captioner or file."""
    agent: AttentionKind = "hard"
    """Look at one location a word, or everywhere at once."""
    attention: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Attention file; by default the one shipped with the captioner."""
    out: Path = Path("runs/captions")
    """A folder for a picture of each photograph, contact sheets and captions.json; or one picture, if the name ends in
    .png or .jpg."""


def find_photographs(paths: Sequence[Path], out: Path) -> list[Path]:
    """The files of ``paths``, and the photographs in its folders and below them, each folder's in order of their paths.

    In a folder a file counts if its name ends as a format that Pillow reads. Hidden files and the folder ``out`` are
    skipped.

    Raises:
        FileNotFoundError: there are no paths, or a folder holds no photograph.
    """
    if not paths:
        raise FileNotFoundError("no photograph is named; name files, or folders of them")
    photos: list[Path] = []
    for path in paths:
        files = sorted(_in_folder(path, out)) if path.is_dir() else [path]
        if not files:
            expected = "expected files such as *.jpg, *.png or *.webp"
            raise FileNotFoundError(f"no photograph in the folder '{path}' or below; {expected}")
        photos += files
    return photos


def _in_folder(folder: Path, out: Path) -> Iterable[Path]:
    formats = Image.registered_extensions()  # loads Pillow's plugins, which fill Image.OPEN
    endings = {ending for ending, kind in formats.items() if kind in {*Image.OPEN} - UNREADABLE_FORMATS}
    for name, subfolders, files in os.walk(folder):
        parent = Path(name)
        subfolders[:] = [name for name in subfolders if name[0] != "." and (parent / name).resolve() != out.resolve()]
        yield from (parent / name for name in files if name[0] != "." and Path(name).suffix.lower() in endings)


def _read(path: Path, gallery: Gallery) -> Image.Image | None:
    """A photograph; None if it cannot be read, after the reason is printed and recorded in the gallery."""
    try:
        return read_photograph(path, "it is skipped")
    except DataError as error:
        tqdm.write(str(error), file=sys.stderr)
        gallery.skip(path, str(error))
        return None


def caption(
    options: DecodingOptions,
    kind: AttentionKind,
    attention: AdditiveAttention,
    captioner: Captioner,
    pixels: Sequence[Image.Image],
) -> list[Captioned]:
    """Caption pictures with hard or soft attention that was made for the captioner."""
    features = FeatureTable(captioner.encoder.encode(pixels).half().cpu().numpy())
    agent = make_attention_agent(kind, attention, features, options.device, options.seed)
    longest = WORLDS.get(captioner.dataset, DatasetSpec).longest
    return options.make_captions(captioner, features, agent, range(len(pixels)), longest, None)


def load_models(kind: AttentionKind, name: str, file: Path | None, device: str) -> tuple[AdditiveAttention, Captioner]:
    """The attention of a file, or the shipped one, and the captioner of a name; of a dataset's the attention's own."""
    if file is None and name in WORLDS:
        agent_file, agents_captioner = find_attention(kind, name)
        captioner = load_captioner(agents_captioner or name).to(device)
    else:  # the captioner as named
        captioner = load_captioner(name).to(device)
        agent_file = read_agent_file(file or shipped_attention(kind, captioner.dataset))
    return agent_file.attention_for(captioner), captioner


def main(options: Options) -> None:
    """Caption the photographs in batches, and write pictures and captions.

    Raises:
        SystemExit: photographs could not be read; with their number and names, after all others are captioned.
    """
    prepare(options)
    photos = find_photographs(options.photos, options.out)[: options.limit]
    gallery = Gallery(options.out, photos)
    attention, captioner = load_models(options.agent, options.captioner, options.attention, options.device)
    size = captioner.encoder.config.size[::-1]
    with gallery, tqdm(total=len(photos), desc="photographs", unit="photo", leave=False) as bar:
        for start in range(0, len(photos), BATCH):
            batch: list[tuple[int, Image.Image, Image.Image]] = []
            for number, path in enumerate(photos[start : start + BATCH], start):
                photo = _read(path, gallery)
                if photo is not None:
                    # Twenty megapixels are not kept until the batch is full.
                    scaled = photo.resize(size, Image.Resampling.BICUBIC)
                    photo.thumbnail((DRAWN_SIDE, DRAWN_SIDE), Image.Resampling.LANCZOS)
                    batch.append((number, photo, scaled))
            # Each batch has its own seed, so that its draws are not those of another batch.
            seed = int(np.random.SeedSequence([options.seed, start]).generate_state(1)[0])
            seeded, pixels = replace(options, seed=seed), [scaled for *_, scaled in batch]
            captions = caption(seeded, options.agent, attention, captioner, pixels) if pixels else []
            for (number, photo, _), captioned in zip(batch, captions, strict=True):
                gallery.add(number, photos[number], photo, captioned, captioner.encoder.grid)
                tqdm.write(f"{photos[number]}: {' '.join(captioned.words)}")
            bar.update(len(photos[start : start + BATCH]))
    skipped = gallery.skipped
    if len(skipped) < len(photos):
        kind = "picture" if gallery.single else "pictures, contact sheets and captions.json"
        print(f"{kind}: {gallery.out}")
    if skipped:
        counts = f"{len(skipped)} of {len(photos)} photographs"
        raise SystemExit(f"{counts} could not be read and were skipped: {', '.join(skipped)}")
