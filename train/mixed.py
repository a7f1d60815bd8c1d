"""A folder of photographs as people have them, for ``train.caption`` to be tried on: many formats, modes and sizes.

They are made of a dataset's photographs. Nothing in them is for training.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.datasets import make_dataset
from train.common.cli import run_command
from train.common.options import Compute, prepare

ORIENTATION = 0x0112  # EXIF tag
SMALLEST, LARGEST = 80, 3000  # pixels of the longer side, but for two
TWENTY_MEGAPIXELS = (5472, 3648)

Save = Callable[[Image.Image, Any], None]


@dataclass
class Options(Compute):
    """Make a folder of mixed photographs."""

    out: Path = Path("runs/mixed")
    """The folder; it must not exist."""
    count: int = 100
    """Photographs, one of which cannot be read."""
    dataset: Literal["shapes", "shapes-large", "flickr8k", "flickr30k", "coco", "webdataset"] = "flickr8k"
    """Whose images they are made of."""
    split: Literal["train", "val", "test"] = "val"
    """Of which split."""


def _as(kind: str, mode: str = "RGB", **how: Any) -> Save:
    return lambda image, file: image.convert(mode).save(file, kind, **how)


def _turned(orientation: int, undo: Image.Transpose) -> Save:
    """A photograph whose pixels lie as a camera held otherwise writes them, with the tag that says so."""

    def save(image: Image.Image, file: Any) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image.transpose(undo).save(file, "JPEG", exif=exif)

    return save


def _clear(image: Image.Image, file: Any) -> None:
    """A palette with one colour that is transparent."""
    image.quantize(64).save(file, "PNG", transparency=0)


def _half_clear(image: Image.Image, file: Any) -> None:
    """Fading out to the right."""
    fading = image.convert("RGBA")
    fading.putalpha(Image.fromarray(np.tile(np.linspace(255, 0, image.width).astype(np.uint8), (image.height, 1))))
    fading.save(file, "PNG")


def _deep(image: Image.Image, file: Any) -> None:
    """Sixteen bits of grey."""
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(file, "PNG")


def _moving(image: Image.Image, file: Any) -> None:
    """Three frames, of which the first counts."""
    image.save(file, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)] * 2, duration=100)


# By what a name ends in. The hundred go through them again and again.
KINDS: dict[str, Save] = {
    "plain.jpg": _as("JPEG", quality=90),
    "progressive.JPG": _as("JPEG", progressive=True),
    "grey.jpg": _as("JPEG", "L"),
    "cmyk.jpg": _as("JPEG", "CMYK"),
    "turned-right.jpeg": _turned(6, Image.Transpose.ROTATE_90),
    "turned-left.jpeg": _turned(8, Image.Transpose.ROTATE_270),
    "upside-down.jpeg": _turned(3, Image.Transpose.ROTATE_180),
    "mirrored.jpeg": _turned(2, Image.Transpose.FLIP_LEFT_RIGHT),
    "rgb.png": _as("PNG"),
    "bits.png": _as("PNG", "1"),
    "deep.png": _deep,
    "palette-clear.png": _clear,
    "fading.png": _half_clear,
    "lossy.webp": _as("WEBP"),
    "lossless.webp": _as("WEBP", lossless=True),
    "palette.gif": _as("GIF", "P"),
    "moving.gif": _moving,
    "rgb.bmp": _as("BMP"),
    "lzw.tif": _as("TIFF", compression="tiff_lzw"),
    "cmyk.tiff": _as("TIFF", "CMYK"),
    "wavelets.jp2": _as("JPEG2000"),
}


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image at some size, each doubling of it as likely as any other."""
    longest = SMALLEST * (LARGEST / SMALLEST) ** rng.random()
    scale = longest / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def main(options: Options) -> None:
    """Make the folder.

    Raises:
        ValueError: fewer photographs than the three that are special, or more than the split has.
        FileExistsError: the folder is there already.
    """
    prepare(options)
    images = make_dataset(options.dataset, options.split, options.data_root)
    if not 3 <= options.count <= len(images):
        raise ValueError(f"count must lie between 3 and the {len(images)} images of the split, got {options.count}")
    rng = np.random.default_rng(options.seed)
    options.out.mkdir(parents=True)
    kinds = [*KINDS.items()]
    for row in tqdm(range(options.count), desc="photographs", unit="photo", leave=False):
        image = images.image(row)
        name, save = kinds[row % len(kinds)]
        if row == options.count - 3:
            name, save, image = "one-pixel.png", KINDS["rgb.png"], image.resize((1, 1))
        elif row == options.count - 2:
            name, save, image = "twenty-megapixels.jpg", KINDS["plain.jpg"], image.resize(TWENTY_MEGAPIXELS)
        else:
            image = resized(image, rng)
        file = io.BytesIO()
        save(image, file)
        written = file.getvalue()
        if row == options.count - 1:
            name, written = f"cut-off-{name}", written[: len(written) // 3]
        with atomic_path(options.out / f"{row:03d}-{name}") as partial:
            partial.write_bytes(written)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.count} photographs, {size / 1e6:.0f} MB: {options.out}")


if __name__ == "__main__":
    run_command(main, Options)
