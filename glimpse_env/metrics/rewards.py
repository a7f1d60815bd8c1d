"""Rewards of captions by name, and weighted sums of them.

A reward is a function of references and words. ``running_rewards`` updates it word by word for B captions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from tqdm import tqdm

from glimpse_env.core.vocabulary import END_WORD
from glimpse_env.datasets import CaptionDataset
from glimpse_env.metrics.bleu import check_scoring, order_weights, sentence_bleu
from glimpse_env.metrics.cider import DocumentFrequencies, cider_d
from glimpse_env.metrics.edit_distance import error_rate, exact
from glimpse_env.metrics.ngrams import References, Words, check_caption
from glimpse_env.metrics.references import digest
from glimpse_env.metrics.rouge import rouge_l

TrainingSplit = Callable[[], CaptionDataset]


class RewardFn(Protocol):
    """Scores a caption, finished or not."""

    def __call__(self, references: References, words: Words, ended: bool) -> float:
        """Score a caption.

        Args:
            references: the reference captions.
            words: the caption so far, without ``<end>``.
            ended: whether the caption has ``<end>``.
        """


def with_end(references: References, words: Words, ended: bool) -> tuple[References, Words]:
    """References and a caption with ``<end>`` as their last word, so that a truncated caption scores less."""
    check_caption(references, words)
    return [[*reference, END_WORD] for reference in references], [*words, END_WORD] if ended else words


class BleuReward:
    """Sentence BLEU, in [0, 1].

    Args:
        order: longest n-gram, 1 to 4.
        smoothing: nltk's smoothing method, 0 to 4.
        score_end: whether ``<end>`` counts as a word.
    """

    def __init__(self, order: int = 4, smoothing: int = 1, score_end: bool = True) -> None:
        self.weights = order_weights(order)
        check_scoring(self.weights, smoothing)
        self.smoothing, self.score_end = smoothing, score_end

    def __call__(self, references: References, words: Words, ended: bool) -> float:
        """Sentence BLEU of ``words``; 0 for a caption without words."""
        if self.score_end:
            references, words = with_end(references, words, ended)
        return sentence_bleu(references, words, self.weights, self.smoothing)


class CiderReward:
    """CIDEr-D, in [0, 10], as self-critical training uses it (Rennie et al. 2017), with ``<end>`` as a word.

    Document frequencies are counted over the split ``training``.
    """

    def __init__(self, training: CaptionDataset) -> None:
        self.frequencies = _frequencies(training)

    def __call__(self, references: References, words: Words, ended: bool) -> float:
        """CIDEr-D of ``words``; 0 for a caption without words."""
        return cider_d(*with_end(references, words, ended), self.frequencies)


_FREQUENCIES: dict[str, DocumentFrequencies] = {}  # by fingerprint of the split


def _frequencies(training: CaptionDataset) -> DocumentFrequencies:
    """Document frequencies of a split, counted once per process."""
    checksum = "" if training.procedural else digest(training)
    key = f"{training.name} {training.split} {training.fingerprint()} {checksum}"
    if key not in _FREQUENCIES:
        rows = tqdm(range(len(training)), desc="document frequencies", unit="image", leave=False, delay=2)
        references = (with_end(training.references(row), (), True)[0] for row in rows)
        _FREQUENCIES[key] = DocumentFrequencies.from_references(references)
    return _FREQUENCIES[key]


class RougeReward:
    """ROUGE-L, in [0, 1], with ``<end>`` as a word."""

    def __call__(self, references: References, words: Words, ended: bool) -> float:
        """ROUGE-L of ``words``; 0 for a caption without words."""
        return rouge_l(*with_end(references, words, ended))


def exact_reward(references: References, words: Words, ended: bool) -> float:
    """1 for a caption that has ``<end>`` and equals a reference, else 0."""
    return exact(references, words) * ended


def cer_reward(references: References, words: Words, ended: bool) -> float:
    """1 − character error rate, at least 0; ``<end>`` is not counted."""
    return max(0.0, 1 - error_rate(references, words, characters=True))


def wer_reward(references: References, words: Words, ended: bool) -> float:
    """1 − word error rate, at least 0; ``<end>`` is not counted."""
    return max(0.0, 1 - error_rate(references, words))


class WeightedSum:
    """A sum of rewards; ``terms`` are weights and rewards."""

    def __init__(self, terms: Sequence[tuple[float, RewardFn]]) -> None:
        self.terms = tuple(terms)

    def __call__(self, references: References, words: Words, ended: bool) -> float:
        """Σ weight · reward of ``words``."""
        return sum(weight * reward(references, words, ended) for weight, reward in self.terms)


_REWARDS: dict[str, Callable[[TrainingSplit], RewardFn]] = {
    "bleu": lambda training: BleuReward(),
    "cider": lambda training: CiderReward(training()),
    "rouge-l": lambda training: RougeReward(),
    "exact": lambda training: exact_reward,
    "cer": lambda training: cer_reward,
    "wer": lambda training: wer_reward,
}
_CUSTOM: dict[str, RewardFn] = {}


def register_reward(name: str, reward: RewardFn) -> None:
    """Give a reward a name, so that environments can be made with ``reward=name``.

    Args:
        name: without ``+`` and ``*``, which write sums, and without spaces around it.
        reward: any function of references, words and whether the caption has ``<end>``.

    Raises:
        ValueError: another reward has the name, or the name could be read as a sum.
    """
    if not name or name != name.strip() or set("+*") & set(name):
        raise ValueError(
            f"{name!r} cannot name a reward; choose one without '+' and '*', which write sums, or spaces around it"
        )
    if name in _REWARDS or _CUSTOM.get(name, reward) is not reward:
        raise ValueError(f"a reward named {name!r} is registered already; choose another name")
    _CUSTOM[name] = reward


def make_reward(name: str, training: TrainingSplit) -> RewardFn:
    """Build a reward.

    Args:
        name: ``bleu``, ``cider``, ``rouge-l``, ``exact``, ``cer``, ``wer`` or a registered name; or a sum of them, as
            in ``bleu + 0.5 * cider``.
        training: gives the training split, which CIDEr-D counts document frequencies over.

    Raises:
        ValueError: no reward has that name, or a weight is not a finite number.
    """
    if not isinstance(name, str):
        raise ValueError(f"reward must be a name such as 'bleu', got {name!r}")
    terms = [_term(term, name, training) for term in re.split(r"(?<![0-9][eE])\+", name)]  # 1e+2 is a number
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else WeightedSum(terms)


def _term(term: str, expression: str, training: TrainingSplit) -> tuple[float, RewardFn]:
    """Weight and reward of one term of a sum."""
    *factors, name = (factor.strip() for factor in term.split("*"))
    try:
        weight = math.prod(map(float, factors))
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(
            f"{term.strip()!r} in reward {expression!r} has no finite number as its weight; write 0.5 * cider"
        )
    if name in _REWARDS:
        return weight, _REWARDS[name](training)
    if name not in _CUSTOM:
        raise ValueError(f"unknown reward {name!r}; registered are: {', '.join(sorted([*_REWARDS, *_CUSTOM]))}")
    return weight, _CUSTOM[name]
