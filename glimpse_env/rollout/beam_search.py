"""Beam search: the hypotheses of many images, extended together, and the best finished caption of each.

Knows dynamics that can be looked through, forked and spoken to. It does not know who looks, nor which images wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.core.checks import check_count, check_number
from glimpse_env.rollout.dynamics import CaptionDynamics


class Captioned(NamedTuple):
    """One finished caption.

    Attributes:
        row: of its image.
        words: without ``<end>``.
        ended: whether ``<end>`` was said.
        looked: where each step looked, (steps, L), float32 weights that sum to one.
        log_probability: sum of the words' log-probabilities under the decoder, ``<end>`` included, in nats.
    """

    row: int
    words: list[str]
    ended: bool
    looked: npt.NDArray[np.float32]
    log_probability: float


@dataclass(frozen=True)
class BeamSearch:
    """Beam search that is monotone in its width (Lemons et al. 2022).

    The hypotheses of an image stand in order. Each is extended in turn to the best caption, not taken yet, that grows
    from one of the hypotheses up to its own place. So the first is the greedy caption, the first k are the beam of
    width k whatever the width, and a wider beam never finds a worse caption.

    Attributes:
        width: K, hypotheses an image.
        length_normalisation: λ; captions are ranked by log-probability / length^λ: 0 is the probability, 1 the mean a
            word.
        block_ngram: no n-gram of this length is said twice; 0 allows all.

    Raises:
        ValueError: a value is outside its range.
    """

    width: int = 3
    length_normalisation: float = 0.0
    block_ngram: int = 0

    def __post_init__(self) -> None:
        check_count("beam width", self.width, 1)
        check_number("length_normalisation", self.length_normalisation, "in [0, 100]", lambda value: 0 <= value <= 100)
        check_count("block_ngram", self.block_ngram, 0)


class Paths:
    """Where the episodes have looked, word by word: (B, T, L), float32."""

    def __init__(self, dynamics: CaptionDynamics) -> None:
        self._dynamics = dynamics
        self.weights = np.zeros(
            (dynamics.num_episodes, dynamics.max_caption_length, dynamics.num_locations), np.float32
        )

    def add(self, actions: npt.NDArray[Any]) -> None:
        """Keep where the episodes that have not ended look now."""
        episodes = self._dynamics.episodes
        going = ~episodes.ended
        self.weights[going, episodes.lengths[going]] = self._dynamics.weights(actions)[going]


class Beams:
    """The hypotheses of many images, K each, and the best finished caption of each image so far."""

    def __init__(self, dynamics: CaptionDynamics, search: BeamSearch) -> None:
        self._dynamics, self._search = dynamics, search
        self._paths = Paths(dynamics)
        groups = dynamics.num_episodes // search.width
        self._scores = torch.full((groups, search.width), -torch.inf, dtype=torch.float64)  # −∞: no hypothesis
        self._value = torch.full((groups,), -torch.inf, dtype=torch.float64)  # rank of the best finished caption
        self._best: list[Captioned | None] = [None] * groups
        self._first = torch.arange(groups).unsqueeze(1) * search.width  # episode of each image's first hypothesis

    def begin(self, groups: npt.NDArray[np.int64]) -> None:
        """Start images anew, (N',): each with one hypothesis that has said nothing."""
        places = torch.from_numpy(groups)
        self._scores[places] = -torch.inf
        self._scores[places, 0] = 0
        self._value[places] = -torch.inf
        for group in groups.tolist():
            self._best[group] = None

    def step(self, actions: npt.NDArray[Any]) -> Tensor:
        """Look, and extend every hypothesis; returns the episode each one grew from, (N · K,), int64."""
        dynamics = self._dynamics
        self._paths.add(actions)
        logits = dynamics.look(actions)
        norm = logits.logsumexp(-1, keepdim=True)  # (B, 1); a blocked word's mass goes to no other word
        if self._search.block_ngram:
            said = torch.from_numpy(dynamics.episodes.words), torch.from_numpy(dynamics.episodes.lengths)
            banned = repeats(*said, self._search.block_ngram, logits.shape[1])
            logits = logits.masked_fill(banned.to(logits.device), -torch.inf)
        likeliest, words = logits.topk(min(self._search.width, logits.shape[1]))  # (B, C): no parent gives more
        logs = (likeliest.double() - norm).cpu()
        check_logits(logs)
        parents, chosen, self._scores = extend(self._scores, logs.reshape(*self._scores.shape, -1))
        episodes = self._first + parents
        dynamics.fork(episodes.flatten())
        self._paths.weights = self._paths.weights[episodes.flatten().numpy()]
        dynamics.say(words.cpu()[episodes, chosen].flatten())
        self._settle()
        return episodes.flatten()

    def _settle(self) -> None:
        """Keep what has ended, if it is the best of its image."""
        episodes = self._dynamics.episodes
        ended = torch.from_numpy(episodes.ended).reshape(self._scores.shape)
        length = torch.from_numpy(episodes.lengths).reshape(self._scores.shape).double()
        power = self._search.length_normalisation
        ranks = torch.where(ended, self._scores / length**power, -torch.inf)
        best, which = ranks.max(1)
        for group in (best > self._value).nonzero().squeeze(1).tolist():
            slot = int(self._first[group, 0] + which[group])
            looked = self._paths.weights[slot, : int(episodes.lengths[slot])].copy()
            self._best[group] = Captioned(
                int(episodes.rows[slot]),
                self._dynamics.caption(slot),
                self._dynamics.said_end(slot),
                looked,
                float(self._scores[group, which[group]]),
            )
        self._value = torch.maximum(self._value, best)
        self._scores = torch.where(ended, -torch.inf, self._scores)

    def done(self) -> npt.NDArray[np.bool_]:
        """No hypothesis can become better than the best finished caption: words only lower its probability."""
        hope = self._scores.amax(1) / self._dynamics.max_caption_length**self._search.length_normalisation
        done: npt.NDArray[np.bool_] = (hope <= self._value).numpy()
        return done

    def caption(self, group: int) -> Captioned:
        """The best finished caption of an image that is done."""
        best = self._best[group]
        if best is None:
            raise RuntimeError(f"image group {group} has no finished caption")
        return best


def check_logits(logs: Tensor) -> None:
    """Refuse log-probabilities that are not numbers: no caption is the best of them.

    Raises:
        ValueError: one is NaN.
    """
    if logs.isnan().any():
        raise ValueError("the decoder's logits are not numbers; its weights or the image's features hold NaN or ∞")


def extend(scores: Tensor, logs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of monotone beam search for N images with K hypotheses each.

    Args:
        scores: log-probability of each hypothesis, −∞ where there is none, (N, K), float64.
        logs: log-probabilities of the C likeliest next words of each, (N, K, C), float64.

    Returns:
        Which hypothesis each new one grows from, (N, K); which of that one's C words it says, (N, K); and its
        log-probability, (N, K), −∞ where nothing was left to grow.
    """
    width, words = logs.shape[1:]
    grown = (scores.unsqueeze(-1) + logs).flatten(1)  # (N, K · C)
    taken, values = [], []
    for place in range(width):
        value, pick = grown[:, : (place + 1) * words].max(1)
        grown.scatter_(1, pick.unsqueeze(1), -torch.inf)
        taken.append(pick)
        values.append(value)
    picks = torch.stack(taken, 1)
    return picks // words, picks % words, torch.stack(values, 1)


def repeats(words: Tensor, lengths: Tensor, order: int, vocab_size: int) -> Tensor:
    """Which words would repeat an n-gram of a caption.

    Args:
        words: said so far, (B, T), int64.
        lengths: how many, (B,), int64.
        order: n.
        vocab_size: V.

    Returns:
        (B, V), bool.
    """
    batch, longest = words.shape
    banned = torch.zeros(batch, vocab_size, dtype=torch.bool)
    if longest < order:
        return banned
    windows = words.unfold(1, order, 1)  # (B, T − n + 1, n)
    last = (lengths.unsqueeze(1) - order + 1 + torch.arange(order - 1)).clamp(min=0)  # places of the last n − 1 words
    alike = (windows[..., :-1] == words.gather(1, last).unsqueeze(1)).all(-1)  # (B, T − n + 1)
    alike &= torch.arange(longest - order + 1) + order <= lengths.unsqueeze(1)
    return banned.scatter(1, torch.where(alike, windows[..., -1], 0), alike)  # 0 is <pad>, which is never said
