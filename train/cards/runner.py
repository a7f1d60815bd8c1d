"""Write a model card beside every shipped file: its contents, its training and its scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glimpse_env.core.atomic_files import atomic_path
from train.cards.card import render_card
from train.cards.lineage import read_trainings
from train.cards.scores import ROOT, shipped_files, update_scores
from train.common.options import CommonOptions, prepare


@dataclass
class Options(CommonOptions):
    """Write the model cards."""

    rescore: bool = False
    """Score every file again; otherwise those that have changed."""
    machine: str = "two virtual cores of an AMD EPYC (Zen 4)"
    """What it is scored on, in words."""
    out: Path | None = None
    """Folder for the cards, to look at; by default beside the files."""


def main(options: Options) -> None:
    """Score what has changed and write the cards."""
    prepare(options)
    files, trainings = shipped_files(), read_trainings()
    scores = update_scores(options, files, options.machine, options.rescore)
    for file in files:
        path = file.card if options.out is None else options.out / file.card.relative_to(ROOT)
        with atomic_path(path) as partial:
            partial.write_text(render_card(file, trainings, scores), encoding="utf-8")
        print(path)
