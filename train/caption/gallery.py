"""Output of captioning: a picture of each photograph, contact sheets and captions.json; or one picture of all."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.rendering.frames import render_frame
from glimpse_env.rendering.panels import render_panels
from glimpse_env.rendering.tiles import AnyGrid
from glimpse_env.rollout.beam_search import Captioned
from train.common.formatting import write_json
from train.common.options import check_writable

CAPTIONS, FORMAT = "captions.json", "glimpse-captions-1"  # raise the latter when a field's name or meaning changes
PICTURES = (".png", ".jpg", ".jpeg")  # endings of one picture of all
ONE_PICTURE = 50  # photographs in one picture, at most: some 35,000 pixels of height
COLUMNS = 7  # panels side by side: a caption of ten words takes two rows
CELL, ACROSS, SHEET = 320, 6, 96  # contact sheets: pixels a photograph, photographs side by side and on one sheet
WRITE_INTERVAL = 10  # times the duration of a write until the next: writing takes a tenth of the time at most


class Gallery:
    """A folder of captioned photographs, or one picture of them.

    ``add`` writes the picture of its photograph. Captions and contact sheets are written from time to time, by
    ``write``, and at the exit of the context manager, also after an exception.

    Args:
        out: a folder, or a file whose name ends in .png or .jpg.
        photos: all that may be added.

    Raises:
        ValueError: more photographs than one picture has room for, or a name that is no picture's and no folder's.
        OSError: ``out`` cannot be written. Nothing has been created then.
    """

    def __init__(self, out: Path, photos: Sequence[Path]) -> None:
        self.out = out
        self.single = out.suffix.lower() in PICTURES
        if self.single and len(photos) > ONE_PICTURE:
            raise ValueError(
                f"one picture has room for {ONE_PICTURE} photographs, not for {len(photos)}; let --out name a folder "
                f"instead of {str(out)!r}"
            )
        if out.suffix.lower() in Image.registered_extensions() and not self.single and not out.is_dir():
            raise ValueError(
                f"--out {str(out)!r} is no picture that can be written; let it end in {', '.join(PICTURES)}, or name a "
                "folder without an ending"
            )
        check_writable(out, "--out", folder=not self.single)
        if (out / CAPTIONS).exists():
            raise FileExistsError(f"--out {str(out)!r} holds captions already; name another folder, or remove that one")
        self._sheets = [f"contact-sheet-{number}" for number in range(1, -(-len(photos) // SHEET) + 1)]
        self._names = unique_names(photos, self._sheets)
        self._records: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []
        self._drawn: list[Image.Image] = []  # panels of the one picture, or cells of the next contact sheet
        self._full_sheets = 0
        self._next_write = 0.0

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *exception: object) -> None:
        self.write()

    def add(self, number: int, path: Path, photo: Image.Image, caption: Captioned, grid: AnyGrid) -> None:
        """Draw the glimpses of a caption on ``photo``, the pixels of the photograph that has this number and path."""
        panels = draw_glimpses(photo, caption, grid)
        if self.single:
            self._drawn.append(panels)
        else:
            name = f"{self._names[number]}.png"
            save_picture(panels, self.out / name)
            record = {"picture": name, "photo": str(path), "caption": " ".join(caption.words)}
            self._records.append({**record, "glimpses": caption.glimpses.tolist()})
            self._drawn.append(_draw_cell(photo, caption, grid, path.name))
            if len(self._drawn) == SHEET:
                self._write_sheet()
                self._full_sheets, self._drawn = self._full_sheets + 1, []
        if time.monotonic() > self._next_write:
            self.write()

    def skip(self, path: Path, reason: str) -> None:
        """Record why a photograph is left out."""
        self._skipped.append({"photo": str(path), "why": reason})

    @property
    def skipped(self) -> list[str]:
        """Photographs that were left out."""
        return [record["photo"] for record in self._skipped]

    def write(self) -> None:
        """Write captions.json and the current contact sheet, or the one picture, as far as photographs were added."""
        start = time.monotonic()
        if self._drawn:
            self._write_sheet()
        if self._records:
            content = {"format": FORMAT, "captions": self._records, "skipped": self._skipped}
            write_json(self.out / CAPTIONS, content)
        end = time.monotonic()
        self._next_write = end + WRITE_INTERVAL * (end - start)

    def _write_sheet(self) -> None:
        if self.single:
            save_picture(stack(self._drawn), self.out)
        else:
            save_picture(_contact_sheet(self._drawn), self.out / f"{self._sheets[self._full_sheets]}.jpg")


def draw_glimpses(photo: Image.Image, caption: Captioned, grid: AnyGrid, title: str | None = None) -> Image.Image:
    """The photograph and one panel a step, under the title and the caption."""
    return render_panels(photo, grid, caption.glimpses, caption.step_words, title=title, columns=COLUMNS)


def _draw_cell(photo: Image.Image, caption: Captioned, grid: AnyGrid, title: str) -> Image.Image:
    """The photograph with all its glimpses over the caption, for a contact sheet."""
    hard = (np.count_nonzero(caption.glimpses, axis=1) == 1).all()
    trail = caption.glimpses.argmax(1).tolist() if hard else []
    weights = None if hard else caption.glimpses.mean(0)
    frame = render_frame(photo, grid, weights=weights, trail=trail, words=caption.words, title=title, size=CELL)
    return Image.fromarray(frame)


def _contact_sheet(cells: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """Pictures of one size in rows."""
    width, height = cells[0].size
    columns = min(ACROSS, len(cells))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below another, aligned left."""
    sheet = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)))
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format its name says."""
    with atomic_path(path) as partial:
        image.save(partial, quality=90)  # of JPEG; PNG has none


def unique_names(photos: Sequence[Path], taken: Sequence[str] = ()) -> list[str]:
    """A name for each photograph's picture: its stem, with a number where that is taken, ignoring case."""
    used = {name.casefold() for name in taken}
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: count(2))
    names: list[str] = []
    for path in photos:
        name = path.stem
        while name.casefold() in used:
            name = f"{path.stem}-{next(numbers[path.stem])}"
        used.add(name.casefold())
        names.append(name)
    return names
