"""The data of the report's explorer: images, each agent's captions of them, its glimpses, and BLEU after every word."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image

from glimpse_env.metrics.incremental_bleu import IncrementalBleu
from glimpse_env.metrics.references import ReferenceTable
from glimpse_env.rendering.drawing import is_drawing
from glimpse_env.rendering.inputs import Picture, as_picture
from glimpse_env.rollout.beam_search import Captioned
from train.evaluate.evaluation import Evaluation
from train.evaluate.scoring import CorpusReferences

PHOTOGRAPH_SIDE = 448  # pixels of a photograph's longer side
MAX_SCENES = 24
MAX_CHARACTERS = 4_000_000  # of JSON
MAX_LOSSLESS = 50_000  # bytes of a drawing that is kept without loss; a larger one gets 256 colours


def prefix_bleu(captions: Sequence[Sequence[str]], references: CorpusReferences) -> list[list[float]]:
    """Sentence BLEU-4 (method 1) of every caption after each of its words; the last is that of the full caption."""
    words = sorted({*chain(*captions), *chain(*chain(*references))})
    ids = {word: number for number, word in enumerate(words)}
    reference_ids = [[[ids[word] for word in ref] for ref in refs] for refs in references]
    lengths = torch.tensor([len(caption) for caption in captions])
    longest = int(lengths.max()) if len(captions) else 0
    if not longest:
        return [[] for _ in captions]
    table = ReferenceTable(reference_ids.__getitem__, len(references), len(words))
    bleu = IncrementalBleu(table, len(captions), smoothing=1, max_length=longest)
    bleu.begin(np.arange(len(captions)), np.arange(len(captions)))
    scores = []
    for step in range(longest):
        tokens = torch.tensor([ids[caption[step]] if step < len(caption) else 0 for caption in captions])
        bleu.append(tokens, step < lengths)
        scores.append(bleu.scores())
    rows: list[list[float]] = torch.stack(scores, 1).tolist()
    return [row[: len(caption)] for row, caption in zip(rows, captions, strict=True)]


def encode_glimpses(caption: Captioned) -> list[int | list[int]]:
    """One value a step: the location of a hard glimpse, or all weights of a soft one in per cent of the largest."""
    return [
        int(weights.argmax())
        if np.count_nonzero(weights) == 1
        else (100 * weights / max(float(weights.max()), 1e-9)).round().astype(int).tolist()
        for weights in caption.glimpses
    ]


def data_uri(image: Image.Image) -> str:
    """An image as a data URI: a drawing as PNG, with fewer colours if it is large; a photograph as a small JPEG."""
    rgb = image.convert("RGB")
    if is_drawing(image):
        kind, data = "png", _encoded(rgb, "png", optimize=True)
        if len(data) > MAX_LOSSLESS:
            quantized = rgb.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            data = _encoded(quantized, "png", optimize=True)
    else:
        rgb.thumbnail((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE))
        kind, data = "jpeg", _encoded(rgb, "jpeg", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def collect_scenes(
    evaluations: dict[str, Evaluation],
    titles: dict[str, str],
    image: Callable[[int], Picture],
    budget: int = MAX_CHARACTERS,
) -> dict[str, Any]:
    """The explorer's data, ready for JSON: the first scenes, as many as fit.

    Args:
        evaluations: of the same images, by the agent's name; at least one.
        titles: what is displayed for each agent's name.
        image: the picture of a row.
        budget: characters of JSON; the first scene is included at any size.
    """
    first = next(iter(evaluations.values()))
    count = min(MAX_SCENES, len(first.names))
    scored = [
        (run, prefix_bleu([caption.words for caption in run.captions[:count]], run.references[:count]))
        for run in evaluations.values()
    ]
    scenes: list[dict[str, Any]] = []
    characters = 0
    for number in range(count):
        picture = as_picture(image(first.captions[number].row))
        scene = {
            "name": first.names[number],
            "image": data_uri(picture),
            "size": list(picture.size),
            "crisp": is_drawing(picture),
            "references": [" ".join(words) for words in first.references[number]],
            "captions": [caption_data(run.captions[number], scores[number]) for run, scores in scored],
        }
        characters += len(json.dumps(scene))
        if scenes and characters > budget:
            break
        scenes.append(scene)
    grids = {name: [run.grid.rows, run.grid.columns] for name, run in evaluations.items()}
    agents = [{"name": name, "title": titles[name], "grid": grid} for name, grid in grids.items()]
    return {"agents": agents, "scenes": scenes}


def caption_data(caption: Captioned, bleu: list[float]) -> dict[str, Any]:
    """Words without ``<end>``, glimpses and BLEU after each word, one entry a step; ``bleu`` has one a word."""
    rounded = [round(score, 3) for score in bleu]
    for step in caption.silent_steps:
        rounded.insert(step, rounded[step - 1] if step else 0.0)
    words = caption.step_words[: len(caption.glimpses) - caption.ended]
    return {"words": words, "glimpses": encode_glimpses(caption), "bleu": rounded}
