"""From an agent to figures: captions for every image of a split, and what they are worth.

Knows dynamics and agents. It does not know options or files; the commands beside it do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from agents.base import Agent
from glimpse_env.bleu import corpus_bleu, order_weights, sentence_bleu
from glimpse_env.dynamics import CaptionDynamics

# A caption that stops on one of these was cut off in the middle (Rennie et al. 2017 and after).
DANGLING = frozenset(
    "a an the in for at of with before after on upon near to is are am and by from above below left".split()
)


class Captioned(NamedTuple):
    """One finished caption.

    Attributes:
        row: of its image.
        words: without ``<end>``.
        ended: whether ``<end>`` was said.
        looked: where each step looked, (steps, L), float32 weights that sum to one.
    """

    row: int
    words: list[str]
    ended: bool
    looked: np.ndarray


class Scores(NamedTuple):
    """What a set of captions is worth.

    Attributes:
        bleu: corpus BLEU-1 to BLEU-4 with brevity penalty, in [0, 1].
        sentence_bleu: mean sentence BLEU-4 (nltk's smoothing method 1), in [0, 1].
        length_ratio: words said per word of the closest references.
        bad_endings: share of captions without ``<end>`` or with a dangling last word.
        distinct: share of captions said for one image only.
        num_images: images captioned.
    """

    bleu: list[float]
    sentence_bleu: float
    length_ratio: float
    bad_endings: float
    distinct: float
    num_images: int


def play(
    dynamics: CaptionDynamics,
    agent: Agent,
    rows: Sequence[int],
    *,
    observe: str = "index",
    deterministic: bool = True,
    rng: np.random.Generator | None = None,
    progress: str | None = None,
) -> list[Captioned]:
    """Let an agent look at every image of ``rows`` and collect the captions, batched over the dynamics' episodes.

    Args:
        dynamics: its number of episodes is the batch.
        agent: chooses where to look.
        rows: the images.
        observe: what the agent sees.
        deterministic: handed to the agent.
        rng: draws words when the decoding is random.
        progress: label of a progress bar; None for none.
    """
    size = dynamics.num_episodes
    finished: list[Captioned] = []
    with tqdm(total=len(rows), desc=progress, unit="caption", disable=progress is None, leave=False) as bar:
        for start in range(0, len(rows), size):
            part = np.asarray(rows[start : start + size])
            filled = np.concatenate([part, np.full(size - len(part), part[-1])])  # a last batch stays full
            dynamics.begin(range(size), filled)
            state, starts, looked = None, np.ones(size, bool), []
            while not dynamics.episodes.ended.all():
                actions, state = agent.predict(dynamics.observation(observe), state, starts, deterministic)
                uniforms = rng.random(size) if rng is not None and dynamics.sampling.random else None
                looked.append(dynamics.weights(actions))
                dynamics.step(actions, uniforms)
                starts = np.zeros(size, bool)
            paths = np.stack(looked, 1)  # (B, steps, L)
            for slot, row in enumerate(part.tolist()):
                steps = int(dynamics.episodes.lengths[slot])
                finished.append(Captioned(row, dynamics.caption(slot), dynamics.said_end(slot), paths[slot, :steps]))
            bar.update(len(part))
    return finished


def score(captions: Sequence[Captioned], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """Score captions against the references of their images, in the same order."""
    words = [caption.words for caption in captions]
    closest = [min((abs(len(r) - len(w)), len(r)) for r in refs)[1] for w, refs in zip(words, references, strict=True)]
    said: dict[tuple[str, ...], int] = {}
    for caption in words:
        said[tuple(caption)] = said.get(tuple(caption), 0) + 1
    bad = [not caption.ended or not caption.words or caption.words[-1] in DANGLING for caption in captions]
    return Scores(
        bleu=[corpus_bleu(references, words, order_weights(order)) for order in (1, 2, 3, 4)],
        sentence_bleu=float(np.mean(sentence_scores(captions, references))),
        length_ratio=sum(map(len, words)) / max(sum(closest), 1),
        bad_endings=float(np.mean(bad)),
        distinct=sum(count == 1 for count in said.values()) / max(len(words), 1),
        num_images=len(words),
    )


def sentence_scores(captions: Sequence[Captioned], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Sentence BLEU-4 (method 1) of each caption."""
    return [sentence_bleu(refs, caption.words, smoothing=1) for caption, refs in zip(captions, references, strict=True)]
