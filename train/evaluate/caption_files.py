"""Captions of a split as JSON lines: written by one evaluation and compared with in another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.rollout.beam_search import Captioned
from train.evaluate.scoring import CorpusReferences, sentence_scores


def write_captions(path: Path, names: list[str], captions: Sequence[Captioned], references: CorpusReferences) -> None:
    """Write one JSON object a line: image, caption, whether it ended, its log-probability and its sentence BLEU-4."""
    scores = sentence_scores(captions, references)
    with atomic_path(path) as partial, partial.open("w") as file:
        for name, caption, bleu in zip(names, captions, scores, strict=True):
            record = {
                "image_id": name,
                "caption": " ".join(caption.words),
                "ended": caption.ended,
                "log_probability": caption.log_probability,
                "bleu4": bleu,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions by image, from a file of ``write_captions``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not one of its objects.
    """
    captions: dict[str, list[str]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); write the file again with --captions") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            captions[record["image_id"]] = record["caption"].split()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: not a caption as --captions writes it ({error!r}); write the file again"
            ) from error
    return captions


def captions_of(names: list[str], captions: dict[str, list[str]], path: Path) -> list[list[str]]:
    """The captions of the images ``names``.

    Raises:
        ValueError: an image has none.
    """
    missing = [name for name in names if name not in captions]
    if missing:
        raise ValueError(
            f"{path} has no caption of {missing[0]!r} ({len(missing)} of {len(names)} images are missing); "
            "compare runs on the same split and limit"
        )
    return [captions[name] for name in names]
