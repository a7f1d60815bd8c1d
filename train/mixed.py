"""Write a folder of photographs in many formats, modes and sizes, to try ``train.caption`` on.

They are a dataset's images, converted and resized.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.datasets import make_dataset
from glimpse_env.rendering.inputs import as_picture
from train.common.cli import run_command
from train.common.options import CommonOptions, DatasetName, prepare

ORIENTATION = 0x0112  # EXIF tag
SMALLEST, LARGEST = 80, 3000  # pixels of the longer side, of all but two
TWENTY_MEGAPIXELS = (5472, 3648)

Convert = Callable[[Image.Image], Image.Image]
Save = Callable[[Image.Image, Any], None]


@dataclass
class Options(CommonOptions):
    """Make a folder of mixed photographs."""

    out: Path = Path("runs/mixed")
    """The folder; it must not exist."""
    count: int = 100
    """Photographs, one of which cannot be read."""
    dataset: DatasetName = "flickr8k"
    """Whose images they are made of."""
    split: Literal["train", "val", "test"] = "val"
    """Of which split."""


def _saver(kind: str, convert: str | Convert = "RGB", **options: Any) -> Save:
    """Save in a format, after a conversion, which may be named by its mode."""
    function = methodcaller("convert", convert) if isinstance(convert, str) else convert
    return lambda image, file: function(image).save(file, kind, **options)


def _rotated(orientation: int, undo: Image.Transpose) -> Save:
    """A photograph of a rotated camera: its pixels are rotated, and an EXIF tag has the orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return _saver("JPEG", methodcaller("transpose", undo), exif=exif)


def _fading(image: Image.Image) -> Image.Image:
    """Fading out to the right."""
    rgba = image.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.linspace(255, 0, image.width).astype(np.uint8), (image.height, 1))))
    return rgba


def _animated(image: Image.Image, file: Any) -> None:
    """Three frames; the first is the image."""
    image.save(file, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)] * 2, duration=100)


# By the end of the file's name. The photographs cycle through them.
KINDS: dict[str, Save] = {
    "plain.jpg": _saver("JPEG", quality=90),
    "progressive.JPG": _saver("JPEG", progressive=True),
    "grey.jpg": _saver("JPEG", "L"),
    "cmyk.jpg": _saver("JPEG", "CMYK"),
    "turned-right.jpeg": _rotated(6, Image.Transpose.ROTATE_90),
    "turned-left.jpeg": _rotated(8, Image.Transpose.ROTATE_270),
    "upside-down.jpeg": _rotated(3, Image.Transpose.ROTATE_180),
    "mirrored.jpeg": _rotated(2, Image.Transpose.FLIP_LEFT_RIGHT),
    "rgb.png": _saver("PNG"),
    "bits.png": _saver("PNG", "1"),
    "deep.png": _saver("PNG", lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)),
    "palette-clear.png": _saver("PNG", methodcaller("quantize", 64), transparency=0),
    "fading.png": _saver("PNG", _fading),
    "lossy.webp": _saver("WEBP"),
    "lossless.webp": _saver("WEBP", lossless=True),
    "palette.gif": _saver("GIF", "P"),
    "moving.gif": _animated,
    "rgb.bmp": _saver("BMP"),
    "lzw.tif": _saver("TIFF", compression="tiff_lzw"),
    "cmyk.tiff": _saver("TIFF", "CMYK"),
    "wavelets.jp2": _saver("JPEG2000"),
}


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The image at a random size, log-uniform between the smallest and the largest."""
    longest = SMALLEST * (LARGEST / SMALLEST) ** rng.random()
    scale = longest / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def main(options: Options) -> None:
    """Write the folder."""
    prepare(options)
    images = make_dataset(options.dataset, options.split, options.data_root)
    if not 3 <= options.count <= len(images):
        raise ValueError(f"count must lie between 3 and the {len(images)} images of the split, got {options.count}")
    rng = np.random.default_rng(options.seed)
    options.out.mkdir(parents=True)
    kinds = islice(cycle(KINDS.items()), options.count)
    for row, (name, save) in enumerate(tqdm(kinds, "photographs", options.count, unit="photo", leave=False)):
        image = as_picture(images.image(row))
        if row == options.count - 3:
            name, save, image = "one-pixel.png", KINDS["rgb.png"], image.resize((1, 1))
        elif row == options.count - 2:
            name, save, image = "twenty-megapixels.jpg", KINDS["plain.jpg"], image.resize(TWENTY_MEGAPIXELS)
        else:
            image = resized(image, rng)
        file = io.BytesIO()
        save(image, file)
        content = file.getvalue()
        if row == options.count - 1:
            name, content = f"cut-off-{name}", content[: len(content) // 3]
        with atomic_path(options.out / f"{row:03d}-{name}") as partial:
            partial.write_bytes(content)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.count} photographs, {size / 1e6:.0f} MB: {options.out}")


if __name__ == "__main__":
    run_command(main, Options)
