"""What a dataset is, and what a world is: a dataset by name with all that the rest of the package reads of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from glimpse_env.core.arrays import Bools
from glimpse_env.core.checks import check_count
from glimpse_env.core.location_grid import LocationGrid

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class DataError(ValueError):
    """A dataset's file is wrong: the message names the file, the line where there is one, and the cure."""


@runtime_checkable
class CaptionDataset(Protocol):
    """One split of a captioned set of inputs. Rows run from 0 to ``len(dataset) - 1`` and never change order.

    Attributes:
        name: the dataset's short name, such as ``flickr8k``.
        split: which part of it.
        procedural: whether inputs are computed rather than read, so that storing their features would gain nothing.
    """

    name: str
    split: Split
    procedural: bool

    def __len__(self) -> int:
        """Number of inputs in the split."""

    def image(self, row: int) -> Image.Image | npt.NDArray[np.uint8]:
        """The input of a row: a picture of any mode and shape, or uint8 (H, W) or (H, W, 3).

        Raises:
            DataError: the file is missing, truncated or not an image.
        """

    def image_id(self, row: int) -> str:
        """The name of a row's input, unique within the dataset."""

    def references(self, row: int) -> list[list[str]]:
        """The reference captions of a row as lists of words: lower case, no punctuation, never ``<unk>``-encoded."""

    def fingerprint(self) -> str:
        """A string that changes whenever an input of the split, or their order, may have changed."""


@runtime_checkable
class MaskedDataset(CaptionDataset, Protocol):
    """A dataset some of whose inputs have fewer locations than the grid."""

    def location_mask(self, row: int) -> Bools:
        """Which locations an input has, bool (L,); at least one."""


@runtime_checkable
class GroundedDataset(CaptionDataset, Protocol):
    """A dataset that knows at which location each word of a reference is to be read.

    Attributes:
        content_words: words of its captions that name something.
        naming_words: those of them that complete the naming of an object; the next word names the next object.
    """

    content_words: Collection[str]
    naming_words: Sequence[str]

    def object_locations(self, row: int) -> list[int]:
        """Locations of a row's objects in reading order."""

    def ordered_references(self, row: int) -> list[list[str]]:
        """References that name the objects in reading order."""

    def word_locations(self, row: int) -> dict[str, tuple[int, ...]]:
        """For every content word of a row the locations that show what it names."""

    def glimpses(self, row: int, caption: Sequence[str]) -> list[int]:
        """The location at which each word of a reference, and ``<end>`` after it, is read; −1 where any will do."""


@runtime_checkable
class LabelledDataset(CaptionDataset, Protocol):
    """A dataset that knows what each location shows, which a new tile CNN can be pretrained on."""

    label_names: Sequence[Sequence[str]]  # the classes of each attribute of an object

    def location_labels(self, row: int) -> dict[int, tuple[int, ...]]:
        """For every location that shows an object, its class in each attribute, as an index of ``label_names``."""


@dataclass(frozen=True)
class DatasetSpec:
    """A world: a dataset by name, and all that environments, training commands, reports and documents read of it.

    Attributes:
        name: short name, such as ``shapes``; ``--dataset`` and shipped files use it.
        env_id: id of its environment, such as ``Glimpse/Shapes-v0``.
        open: opens a split from a data folder, None for a world that needs none.
        grid: where the locations of an input lie; None where that depends on the encoder.
        image_size: height and width in pixels that the encoder scales inputs to; None leaves the encoder's own.
        encoder: backbone of a new captioner: ``tile``, ``efficientnet-lite2`` or a torchvision classifier.
        longest: T, steps after which a caption is complete, unless ``max_caption_length`` says otherwise.
        blank: whether the vocabulary holds ``<blank>``, a step that adds no word.
        captioner: name or path of the captioner that its environment uses by default; None for the shipped captioner of
            the world's own name.
        metrics: what ``info`` and the tables report of a finished caption, by name; see ``glimpse_env.metrics``.
        recipe: the family of hyperparameters of the training commands: ``scenes`` or ``photographs``.
        hyperparameters: fields of the captioner's recipe that differ from the family's.
        learner_options: options of the benchmark's trainings that differ from the family's, by agent.
        live_steps: steps of the short PPO training whose row the benchmark adds to its table; 0 for none.
        grounded: whether its datasets are ``GroundedDataset``s, which the oracle needs.
        needs_data: whether inputs lie in a folder of the user's.
        report_split: the split that published figures are of.
        limits: what the shipped models should not be used for, paragraphs for model cards; ``{words}`` is filled in.
        training_data: what the shipped models learned from, a sentence for model cards.
        licence: licence of models trained on it, a sentence for model cards.

    Raises:
        ValueError: a field is missing or has no such value.
    """

    name: str = ""  # that and the next two must be given: a sentence says which is missing
    env_id: str = ""
    open: Callable[[Split, Any], CaptionDataset] = None  # type: ignore[assignment]
    grid: LocationGrid | None = None
    image_size: tuple[int, int] | None = None
    encoder: str = "tile"
    longest: int = 20
    blank: bool = False
    captioner: str | Path | None = None
    metrics: tuple[str, ...] = ("bleu",)
    recipe: Literal["scenes", "photographs"] = "scenes"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    learner_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    live_steps: int = 0
    grounded: bool = False
    needs_data: bool = False
    report_split: Split = "test"
    training_data: str = ""
    limits: tuple[str, ...] = ()
    licence: str = "MIT, as the code."

    def __post_init__(self) -> None:
        size, metrics = self.image_size, self.metrics
        is_name = isinstance(self.name, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name)
        is_id = isinstance(self.env_id, str) and re.fullmatch(r"(\w+/)?[\w.-]+-v\d+", self.env_id)
        is_size = isinstance(size, tuple) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
        are_names = isinstance(metrics, tuple) and all(isinstance(name, str) for name in metrics)
        flags = {name: (type(getattr(self, name)) is bool, "a bool") for name in ("blank", "grounded", "needs_data")}
        rules: dict[str, tuple[object, str]] = {
            "name": (is_name, "such as 'shapes-large'"),
            "env_id": (is_id, "such as 'Glimpse/Toy-v0'"),
            "open": (callable(self.open), "a function of split and data folder"),
            "grid": (isinstance(self.grid, LocationGrid | None), "a LocationGrid"),
            "image_size": (size is None or is_size, "height and width in pixels"),
            "encoder": (self.encoder and isinstance(self.encoder, str), "the name of a backbone"),
            "metrics": (are_names and 0 < len(metrics) == len({*metrics}), "a tuple of different names"),
            "recipe": (self.recipe in ("scenes", "photographs"), "'scenes' or 'photographs'"),
            "hyperparameters": (isinstance(self.hyperparameters, Mapping), "a dict of the recipe's fields"),
            "report_split": (self.report_split in SPLITS, f"one of {', '.join(SPLITS)}"),
        }
        for name, (holds, expected) in (rules | flags).items():
            if not holds:
                raise ValueError(f"world {self.name!r} needs {name}=, {expected}, got {getattr(self, name)!r}")
        check_count(f"longest of world {self.name!r}", self.longest, 1)
        if self.encoder == "tile":
            if self.grid is None or size is None or len(self.grid.shape) > 2:
                raise ValueError(f"world {self.name!r}: encoder 'tile' needs grid= and image_size= and reads no frames")
            if size[0] % self.grid.rows or size[1] % self.grid.columns:
                raise ValueError(
                    f"images of world {self.name!r} are {size[0]} x {size[1]} px, which do not divide into its grid of "
                    f"{self.grid} tiles; change image_size= or grid="
                )


def check_split(split: str) -> Split:
    """``split`` itself when it is one of train, val, test.

    Raises:
        ValueError: it is none of them.
    """
    for known in SPLITS:
        if split == known:
            return known
    raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")


def data_folder(data_root: str | Path, name: str) -> Path:
    """``data_root``, which holds the dataset ``name``, as a path.

    Raises:
        FileNotFoundError: it is not a folder.
    """
    root = Path(data_root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder {str(root)!r}; set data_root= or $GLIMPSE_DATA to where {name} lies")
    return root


def location_masks(dataset: CaptionDataset, num_locations: int, rows: range | None = None) -> Bools | None:
    """Which locations ``rows``, by default all N of a split, have, bool (B, L); None where every row has all.

    Raises:
        DataError: a row has no location, or its mask is not bool (L,).
    """
    if not isinstance(dataset, MaskedDataset):
        return None
    rows = range(len(dataset)) if rows is None else rows
    masks = np.zeros((len(rows), num_locations), bool)
    for index, row in enumerate(rows):
        mask = np.asarray(dataset.location_mask(row))
        if mask.shape != (num_locations,) or mask.dtype != np.bool_:
            raise DataError(
                f"the location mask of {dataset.image_id(row)!r} is {mask.dtype} of shape {mask.shape}; the encoder "
                f"makes {num_locations} locations, so expected bool of shape ({num_locations},)"
            )
        if not mask.any():
            raise DataError(
                f"{dataset.image_id(row)!r} has no location to look at: its location mask is empty; leave the row out "
                "or give it a location"
            )
        masks[index] = mask
    return masks
