"""Beam search: extends the hypotheses of many images together and keeps the best finished caption of each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.core.checks import check_count, check_number
from glimpse_env.core.vocabulary import BLANK_WORD, END_WORD
from glimpse_env.rollout.dynamics import CaptionDynamics


class Captioned(NamedTuple):
    """One finished caption.

    Attributes:
        row: of its image.
        words: without ``<end>`` and ``<blank>``.
        ended: whether the decoder generated ``<end>``.
        glimpses: attention weights of each step, (steps, L), float32, each row with sum one.
        log_probability: sum of all steps' log-probabilities under the decoder, those of ``<end>`` and of silent steps
            included, in nats.
        silent_steps: the steps whose word was ``<blank>``, in ascending order.
    """

    row: int
    words: list[str]
    ended: bool
    glimpses: npt.NDArray[np.float32]
    log_probability: float
    silent_steps: tuple[int, ...] = ()

    @property
    def step_words(self) -> list[str]:
        """The word of each step, ``<blank>`` and ``<end>`` included: one for each glimpse."""
        words = [*self.words, *[END_WORD] * self.ended]
        for step in self.silent_steps:
            words.insert(step, BLANK_WORD)
        return words


@dataclass(frozen=True)
class BeamSearch:
    """Beam search that is monotone in its width (Lemons et al. 2022).

    The hypotheses of an image are ordered. Hypothesis k of the next step is the best caption that extends one of the
    hypotheses up to k and that no hypothesis before k has taken. So the first is the greedy caption, the first k are
    the beam of width k whatever the width, and a wider beam never finds a worse caption.

    Attributes:
        width: K, hypotheses an image.
        length_normalisation: λ; captions are ranked by log-probability / length^λ, length at least 1: 0 ranks by
            probability, 1 by the mean log-probability a word.
        block_ngram: no caption repeats an n-gram of this length; 0 allows all.

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


class Search:
    """Episodes without rewards that record their glimpses: ``groups`` images, N, with ``width`` hypotheses each, K."""

    def __init__(self, groups: int, width: int, **options: Any) -> None:
        self.dynamics = CaptionDynamics(num_episodes=groups * width, per_image=width, **options)
        shape = (groups * width, self.dynamics.max_caption_length, self.dynamics.num_locations)
        self._glimpses = np.zeros(shape, np.float32)  # (B, T, L)
        self._lengths = np.zeros(shape[:2], np.int64)  # of the caption before each step, (B, T)

    def _attend(self, actions: npt.NDArray[Any]) -> Tensor:
        """Logits, (B, V), after recording the glimpses of the episodes that have not ended."""
        episodes = self.dynamics.episodes
        alive = ~episodes.ended
        self._glimpses[alive, episodes.steps[alive]] = self.dynamics.weights(actions)[alive]
        self._lengths[alive, episodes.steps[alive]] = episodes.lengths[alive]
        return self.dynamics.attend(actions)

    def _captioned(self, slot: int, log_probability: float) -> Captioned:
        dynamics, episodes = self.dynamics, self.dynamics.episodes
        steps = int(episodes.steps[slot])
        grown = np.diff(self._lengths[slot, :steps], append=episodes.lengths[slot])
        glimpses, silent_steps = self._glimpses[slot, :steps].copy(), tuple((grown == 0).nonzero()[0].tolist())
        row, words, has_end = int(episodes.rows[slot]), dynamics.caption(slot), dynamics.has_end(slot)
        return Captioned(row, words, has_end, glimpses, log_probability, silent_steps)


class Beams(Search):
    """The hypotheses of many images, K each, and the best finished caption of each image so far."""

    def __init__(self, groups: int, beam_search: BeamSearch, **options: Any) -> None:
        super().__init__(groups, beam_search.width, **options)
        self._search = beam_search
        self._scores = torch.full((groups, beam_search.width), -torch.inf, dtype=torch.float64)  # −∞: no hypothesis
        self._best_rank = torch.full((groups,), -torch.inf, dtype=torch.float64)  # of the best finished caption
        self._best: list[Captioned | None] = [None] * groups
        self._first = torch.arange(groups).unsqueeze(1) * beam_search.width  # episode of each image's first hypothesis

    def begin(self, groups: npt.NDArray[np.int64]) -> None:
        """Start images, (N',), each with one empty hypothesis."""
        indices = torch.from_numpy(groups)
        self._scores[indices] = -torch.inf
        self._scores[indices, 0] = 0
        self._best_rank[indices] = -torch.inf
        for group in groups.tolist():
            self._best[group] = None

    def step(self, actions: npt.NDArray[Any]) -> Tensor:
        """Attend and extend every hypothesis; returns the episode that each one extends, (N · K,), int64."""
        dynamics = self.dynamics
        logits = self._attend(actions)
        norm = logits.logsumexp(-1, keepdim=True)  # (B, 1); a blocked word's mass goes to no other word
        if self._search.block_ngram:
            words, lengths = torch.from_numpy(dynamics.episodes.words), torch.from_numpy(dynamics.episodes.lengths)
            blocked = repeated_words(words, lengths, self._search.block_ngram, logits.shape[1])
            logits = logits.masked_fill(blocked.to(logits.device), -torch.inf)
        # C candidates of each hypothesis, (B, C): no hypothesis contributes more than K.
        likeliest, candidates = logits.topk(min(self._search.width, logits.shape[1]))
        logs = (likeliest.double() - norm).cpu()
        check_logits(logs)
        parents, picks, self._scores = extend_hypotheses(self._scores, logs.reshape(*self._scores.shape, -1))
        episodes = self._first + parents
        dynamics.fork(episodes.flatten())
        self._glimpses, self._lengths = (array[episodes.flatten().numpy()] for array in (self._glimpses, self._lengths))
        dynamics.append_words(candidates.cpu()[episodes, picks].flatten())
        self._collect_finished()
        return episodes.flatten()

    def _collect_finished(self) -> None:
        """Keep each finished caption that is the best of its image so far, and remove it from the hypotheses."""
        episodes = self.dynamics.episodes
        ended = torch.from_numpy(episodes.ended).reshape(self._scores.shape)
        length = torch.from_numpy(episodes.lengths).reshape(self._scores.shape).double().clamp(min=1)
        power = self._search.length_normalisation
        best_rank, best = torch.where(ended, self._scores / length**power, -torch.inf).max(1)
        for group in (best_rank > self._best_rank).nonzero().squeeze(1).tolist():
            slot = int(self._first[group, 0] + best[group])
            self._best[group] = self._captioned(slot, float(self._scores[group, best[group]]))
        self._best_rank = torch.maximum(self._best_rank, best_rank)
        self._scores = torch.where(ended, -torch.inf, self._scores)

    def done(self) -> npt.NDArray[np.bool_]:
        """Images, (N,), whose hypotheses can no longer surpass their best caption: words only lower a probability."""
        bound = self._scores.amax(1) / self.dynamics.max_caption_length**self._search.length_normalisation
        done: npt.NDArray[np.bool_] = (bound <= self._best_rank).numpy()
        return done

    def caption(self, group: int) -> Captioned:
        """The best finished caption of an image that is done."""
        best = self._best[group]
        if best is None:
            raise RuntimeError(f"image group {group} has no finished caption")
        return best


def check_logits(logs: Tensor) -> None:
    """Raise ``ValueError`` if a log-probability is NaN."""
    if logs.isnan().any():
        raise ValueError("the decoder's logits are not numbers; its weights or the image's features hold NaN or ∞")


def extend_hypotheses(scores: Tensor, logs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of monotone beam search for N images with K hypotheses each.

    Args:
        scores: log-probability of each hypothesis, −∞ where there is none, (N, K), float64.
        logs: log-probabilities of the C likeliest next words of each, (N, K, C), float64.

    Returns:
        The hypothesis that each new one extends, (N, K); which of its C words it appends, (N, K); and the new
        log-probability, (N, K), −∞ where no candidate is left.
    """
    width, words = logs.shape[1:]
    candidates = (scores.unsqueeze(-1) + logs).flatten(1)  # (N, K · C)
    indices, values = [], []
    for hypothesis in range(width):
        value, index = candidates[:, : (hypothesis + 1) * words].max(1)
        candidates.scatter_(1, index.unsqueeze(1), -torch.inf)
        indices.append(index)
        values.append(value)
    picks = torch.stack(indices, 1)
    return picks // words, picks % words, torch.stack(values, 1)


def repeated_words(words: Tensor, lengths: Tensor, order: int, vocab_size: int) -> Tensor:
    """Which next words, (B, V), bool, would repeat an n-gram of length ``order`` of the captions so far.

    Args:
        words: captions so far, (B, T), int64.
        lengths: their numbers of words, (B,), int64.
        order: n.
        vocab_size: V.
    """
    batch, longest = words.shape
    repeated = torch.zeros(batch, vocab_size, dtype=torch.bool)
    if longest < order:
        return repeated
    windows = words.unfold(1, order, 1)  # (B, T − n + 1, n)
    last = (lengths.unsqueeze(1) - order + 1 + torch.arange(order - 1)).clamp(min=0)  # indices of the last n − 1 words
    equal = (windows[..., :-1] == words.gather(1, last).unsqueeze(1)).all(-1)  # (B, T − n + 1)
    equal &= torch.arange(longest - order + 1) + order <= lengths.unsqueeze(1)
    return repeated.scatter(1, torch.where(equal, windows[..., -1], 0), equal)  # 0 is <pad>, never generated
