"""Write a model card beside every shipped file: its contents, its training and its scores."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.datasets import find_world
from train.cards.card import render_card
from train.cards.lineage import read_trainings
from train.cards.scores import ROOT, CardScores, Scoring, ShippedFile, read_scores, shipped_files, write_scores
from train.common.options import CommonOptions, prepare
from train.evaluate.evaluation import Options as EvaluationOptions
from train.evaluate.evaluation import evaluate


@dataclass
class Options(CommonOptions):
    """Write the model cards."""

    rescore: bool = False
    """Score every file again; otherwise those that have changed."""
    machine: str = "two virtual cores of an AMD EPYC (Zen 4)"
    """What it is scored on, in words."""
    out: Path | None = None
    """Folder for the cards, to look at; by default beside the files."""


def update_scores(options: Options, files: list[ShippedFile]) -> CardScores:
    """Score what is missing or was scored with other files, or everything, and write card_scores.json."""
    before, scores = read_scores(), CardScores()
    for scoring in dict.fromkeys(scoring for file in files for scoring in file.scorings):
        command = scoring.command
        if options.rescore or command not in before or before[command]["files"] != scoring.digests():
            print(command)
            scores[command] = _score(options, scoring)
            write_scores({**before, **scores})  # kept if a later evaluation fails
        else:
            scores[command] = before[command]
    write_scores(scores)
    return scores


def _score(options: Options, scoring: Scoring) -> CardScores:
    shared = {name: getattr(options, name) for name in ("seed", "device", "data_root")}
    dataset, split, agent, decode = scoring
    evaluation = EvaluationOptions(env=find_world(dataset).env_id, split=split, agent=agent, decode=decode, **shared)
    scores = evaluate(evaluation).scores
    return {
        "files": scoring.digests(),
        "bleu": [round(value, 4) for value in scores.bleu],
        "length_ratio": round(scores.length_ratio, 3),
        "images": scores.num_images,
        "scored": f"{date.today()}, {options.machine}",
    }


def main(options: Options) -> None:
    """Score what has changed and write the cards."""
    prepare(options)
    files, trainings = shipped_files(), read_trainings()
    scores = update_scores(options, files)
    for file in files:
        path = file.card if options.out is None else options.out / file.card.relative_to(ROOT)
        with atomic_path(path) as partial:
            partial.write_text(render_card(file, trainings, scores), encoding="utf-8")
        print(path)
