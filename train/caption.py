"""Caption your own photographs, with a picture of every glimpse.

One panel a word: a box where a hard agent looked, a heat map of a soft agent's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from agents.loading import make_attention_agent, own_captioner, shipped_attention
from glimpse_env.captioner import Captioner, load_captioner
from glimpse_env.datasets import longest_caption
from glimpse_env.datasets.photographs import read_photograph
from glimpse_env.decoding import Captioned
from glimpse_env.features import FeatureTable
from glimpse_env.files import atomic_path
from glimpse_env.rendering import render_panels
from train.common import prepare, write_json
from train.decoding import DecodingOptions

BATCH = 16  # photographs at once
COLUMNS = 7  # panels side by side: a caption of ten words takes two rows


@dataclass
class Options(DecodingOptions):
    """Caption photographs."""

    photos: tyro.conf.Positional[list[Path]] = tyro.MISSING
    """Image files of any format and size."""
    captioner: str = "flickr8k"
    """Shipped captioner or file."""
    agent: Literal["hard", "soft"] = "hard"
    """Look at one location a word, or everywhere at once."""
    attention: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Attention file; by default the one shipped with the captioner."""
    out: Path = Path("runs/captions")
    """A folder for a picture of each photograph and captions.json; or one picture, if the name ends in .png or .jpg."""


def caption(options: Options, photos: list[Image.Image], captioner: Captioner) -> list[Captioned]:
    """Look at ``photos`` and say what they show."""
    encoded = [captioner.encoder.encode(photos[i : i + BATCH]) for i in range(0, len(photos), BATCH)]
    features = FeatureTable(np.concatenate([part.half().cpu().numpy() for part in encoded]))
    path = options.attention or shipped_attention(options.agent, captioner.dataset)
    agent = make_attention_agent(options.agent, path, captioner, features, options.device, options.seed)
    longest = longest_caption(captioner.dataset)
    return options.make_captions(captioner, features, agent, range(len(photos)), longest, "captions")


def picture(photo: Image.Image, made: Captioned, captioner: Captioner, title: str | None = None) -> Image.Image:
    """The photograph and one panel a word, under the title and the caption."""
    words = [*made.words, "<end>"] if made.ended else made.words
    return render_panels(photo, captioner.encoder.config.grid, made.looked, words, title=title, columns=COLUMNS)


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format its name says."""
    with atomic_path(path) as partial:
        image.save(partial)


def stack(images: list[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    sheet = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)))
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def main(options: Options) -> None:
    """Caption, draw and write."""
    prepare(options)
    photos = options.photos[: options.limit]
    images = [read_photograph(path) for path in tqdm(photos, desc="photographs", leave=False)]
    name = options.captioner if options.attention else own_captioner(options.agent, options.captioner)
    captioner = load_captioner(name).to(options.device)
    made = caption(options, images, captioner)
    pictures = [picture(image, one, captioner) for image, one in zip(images, made, strict=True)]
    for path, one in zip(photos, made, strict=True):
        print(f"{path}: {' '.join(one.words)}")
    if options.out.suffix.lower() in (".png", ".jpg", ".jpeg"):
        save_picture(stack(pictures), options.out)
        print(f"picture: {options.out}")
        return
    names = unique_names(photos)
    for name, image in zip(names, pictures, strict=True):
        save_picture(image, options.out / f"{name}.png")
    records = [
        {
            "photo": str(path),
            "picture": f"{name}.png",
            "caption": " ".join(one.words),
            "glimpses": one.looked.tolist(),
        }
        for path, name, one in zip(photos, names, made, strict=True)
    ]
    write_json(options.out / "captions.json", records)
    print(f"pictures and captions.json: {options.out}")


def unique_names(photos: list[Path]) -> list[str]:
    """A name for each photograph's picture: its stem, with a number where that was taken."""
    names: list[str] = []
    for path in photos:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}-{number}", number + 1
        names.append(name)
    return names


if __name__ == "__main__":
    main(tyro.cli(Options))
