"""What captioning leaves: a picture of each photograph, contact sheets of all and captions.json; or one picture of all.

Knows files and what is drawn on them. It does not know how captions are made.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.rendering.frames import render_frame, render_panels
from glimpse_env.rollout.beam_search import Captioned
from train.common.formatting import write_json
from train.common.options import check_writable

Grid = tuple[int, int]
CAPTIONS, FORMAT = "captions.json", "glimpse-captions-1"  # raise the latter when a field's name or meaning changes
PICTURES = (".png", ".jpg", ".jpeg")  # a name that ends so is one picture of all
ONE_PICTURE = 50  # photographs that it has room for: some 35,000 pixels of height
COLUMNS = 7  # panels side by side: a caption of ten words takes two rows
CELL, ACROSS, SHEET = 320, 6, 96  # contact sheets: pixels a photograph, photographs side by side and on one sheet
PATIENCE = 10  # what is written again and again takes at most a tenth of the time


class Album:
    """A folder for captioned photographs, or one picture of them.

    A photograph's own picture is written when it is added. Lists and sheets are written now and then, and by ``write``;
    as a context manager it does so at the end, also when an exception ends it.

    Args:
        out: a folder, or a file whose name ends in .png or .jpg.
        photos: all that may be added.

    Raises:
        ValueError: more photographs than one picture has room for, or a name that is no picture's and no folder's.
        OSError: ``out`` cannot be written. Nothing has been made then.
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
        self._drawn: list[Image.Image] = []  # panels of the one picture, or cells of the contact sheet in the making
        self._full = 0  # contact sheets
        self._due = 0.0

    def __enter__(self) -> Album:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.write()

    def add(self, number: int, path: Path, photo: Image.Image, made: Captioned, grid: Grid) -> None:
        """Draw a captioned photograph.

        Args:
            number: its place among all photographs.
            path: its file.
            photo: what it shows.
            made: its caption and glimpses.
            grid: rows and columns of locations.
        """
        panels = picture(photo, made, grid)
        record = {"photo": str(path), "caption": " ".join(made.words), "glimpses": made.looked.tolist()}
        if self.single:
            self._drawn.append(panels)
        else:
            name = f"{self._names[number]}.png"
            save_picture(panels, self.out / name)
            self._records.append({"picture": name, **record})
            self._drawn.append(cell_of(photo, made, grid, path.name))
            if len(self._drawn) == SHEET:
                self._write_sheet()
                self._full, self._drawn = self._full + 1, []
        if time.monotonic() > self._due:
            self.write()

    def skip(self, path: Path, why: str) -> None:
        """Leave out a photograph, and keep why."""
        self._skipped.append({"photo": str(path), "why": why})

    @property
    def skipped(self) -> list[str]:
        """Photographs that were left out."""
        return [one["photo"] for one in self._skipped]

    def write(self) -> None:
        """Write what is there: captions.json and the contact sheet, or the one picture."""
        start = time.monotonic()
        if self._drawn:
            self._write_sheet()
        if self._records:
            held = {"format": FORMAT, "captions": self._records, "skipped": self._skipped}
            write_json(self.out / CAPTIONS, held)
        now = time.monotonic()
        self._due = now + PATIENCE * (now - start)

    def _write_sheet(self) -> None:
        if self.single:
            save_picture(stack(self._drawn), self.out)
        else:
            save_picture(contact_sheet(self._drawn), self.out / f"{self._sheets[self._full]}.jpg")


def picture(photo: Image.Image, made: Captioned, grid: Grid, title: str | None = None) -> Image.Image:
    """The photograph and one panel a word, under the title and the caption."""
    words = [*made.words, "<end>"] if made.ended else made.words
    return render_panels(photo, grid, made.looked, words, title=title, columns=COLUMNS)


def cell_of(photo: Image.Image, made: Captioned, grid: Grid, title: str) -> Image.Image:
    """The photograph with all its glimpses over the caption, for a contact sheet."""
    hard = (np.count_nonzero(made.looked, axis=1) == 1).all()
    trail = made.looked.argmax(1).tolist() if hard else []
    weights = None if hard else made.looked.mean(0)
    frame = render_frame(photo, grid, weights=weights, trail=trail, words=made.words, title=title, size=CELL)
    return Image.fromarray(frame)


def contact_sheet(cells: Sequence[Image.Image], gap: int = 12) -> Image.Image:
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
    """Pictures one below the other."""
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
    """A name for each photograph's picture: its stem, with a number where that was taken, in any case of letters."""
    seen = {name.casefold() for name in taken}
    numbers: dict[str, int] = {}
    names: list[str] = []
    for path in photos:
        name = path.stem
        while name.casefold() in seen:
            number = numbers[path.stem] = numbers.get(path.stem, 1) + 1
            name = f"{path.stem}-{number}"
        seen.add(name.casefold())
        names.append(name)
    return names
