"""What the report's explorer shows: images, what each agent said of them, where it looked at every word, and BLEU.

Knows captions, references and images. It does not know agents, nor how the page shows what is gathered here.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from glimpse_env.metrics.incremental_bleu import IncrementalBleu
from glimpse_env.metrics.ngram_table import ReferenceTable
from glimpse_env.rendering.drawing import is_drawing
from glimpse_env.rollout.beam_search import Captioned
from train.evaluate.scoring import References

SIDE = 448  # a photograph's longer side, pixels
MOST = 24  # scenes, at most
BUDGET = 4_000_000  # characters, at most
LOSSLESS = 50_000  # bytes of a drawing, at most, that are kept without loss; a larger one has 256 colours


class Player(NamedTuple):
    """One agent as the explorer shows it.

    Attributes:
        name: as the table has it.
        captions: of the images, in their order.
        grid: rows and columns of the locations it looked at.
    """

    name: str
    captions: Sequence[Captioned]
    grid: tuple[int, int]


def growing_bleu(captions: Sequence[Sequence[str]], references: References) -> list[list[float]]:
    """Sentence BLEU-4 (method 1) of every caption after each of its words; the last is the whole caption's."""
    words = sorted({word for one in captions for word in one} | {w for refs in references for ref in refs for w in ref})
    ids = {word: number for number, word in enumerate(words)}
    told = [[[ids[word] for word in ref] for ref in refs] for refs in references]
    longest = max((len(one) for one in captions), default=0)
    if not longest:
        return [[] for _ in captions]
    growing = IncrementalBleu(
        ReferenceTable(told.__getitem__, len(told), len(words)), len(captions), smoothing=1, max_length=longest
    )
    growing.begin(np.arange(len(captions)), np.arange(len(captions)))
    scores = []
    for step in range(longest):
        said = torch.tensor([step < len(one) for one in captions])
        growing.append(torch.tensor([ids[one[step]] if step < len(one) else 0 for one in captions]), said)
        scores.append(growing.scores())
    each: list[list[float]] = torch.stack(scores, 1).tolist()
    return [row[: len(one)] for row, one in zip(each, captions, strict=True)]


def looks(caption: Captioned) -> list[int | list[int]]:
    """Where each word was looked up: a location, or weights of all locations in per cent of the largest."""
    found: list[int | list[int]] = []
    for weights in caption.looked:
        if np.count_nonzero(weights) == 1:
            found.append(int(weights.argmax()))
        else:
            found.append((100 * weights / max(float(weights.max()), 1e-9)).round().astype(int).tolist())
    return found


def data_uri(image: Image.Image) -> str:
    """An image as a data URI: a drawing without loss or, if it is large, with fewer colours; a photograph as JPEG."""
    shown = image.convert("RGB")
    if is_drawing(image):
        kind, data = "png", _encoded(shown, "png", optimize=True)
        if len(data) > LOSSLESS:
            fewer = shown.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            data = _encoded(fewer, "png", optimize=True)
    else:
        shown.thumbnail((SIDE, SIDE))
        kind, data = "jpeg", _encoded(shown, "jpeg", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gather(
    players: Sequence[Player],
    titles: dict[str, str],
    references: References,
    names: Sequence[str],
    image: Callable[[int], Image.Image],
    most: int = MOST,
    budget: int = BUDGET,
) -> dict[str, Any]:
    """The explorer's data, ready for JSON: the first scenes, as many as fit.

    Args:
        players: who said something of the images.
        titles: what is shown of each player's name.
        references: of every image.
        names: of every image.
        image: the picture of a row.
        most: scenes.
        budget: characters of JSON; the first scene is kept whatever it takes.
    """
    count = min(most, len(names))
    grown = [growing_bleu([one.words for one in player.captions[:count]], references[:count]) for player in players]
    scenes: list[dict[str, Any]] = []
    spent = 0
    for place in range(count if players else 0):
        picture = image(players[0].captions[place].row)
        scene = {
            "name": names[place],
            "image": data_uri(picture),
            "size": list(picture.size),
            "crisp": is_drawing(picture),
            "references": [" ".join(words) for words in references[place]],
            "said": [
                {
                    "words": list(player.captions[place].words),
                    "ended": bool(player.captions[place].ended),
                    "looks": looks(player.captions[place]),
                    "bleu": [round(value, 3) for value in each[place]],
                }
                for player, each in zip(players, grown, strict=True)
            ],
        }
        spent += len(json.dumps(scene))
        if scenes and spent > budget:
            break
        scenes.append(scene)
    agents = [{"name": one.name, "title": titles[one.name], "grid": list(one.grid)} for one in players]
    return {"agents": agents, "scenes": scenes}
