"""What a caption is worth: rewards by name, and sums of them.

A reward compares words with references. It does not know episodes; when it is paid out is for the dynamics to say, and
how it is followed word by word for B captions, for worth.
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
from glimpse_env.metrics.ngrams import References, check_references, check_words
from glimpse_env.metrics.references import digest
from glimpse_env.metrics.rouge import rouge_l

TrainingSplit = Callable[[], CaptionDataset]


class RewardFn(Protocol):
    """Scores a caption, finished or not."""

    def __call__(self, references: References, words: Sequence[str], ended: bool) -> float:
        """The worth of a caption.

        Args:
            references: the reference captions.
            words: the caption so far, without ``<end>``.
            ended: whether ``<end>`` was said.
        """
        ...


def with_end(references: References, words: Sequence[str], ended: bool) -> tuple[References, Sequence[str]]:
    """References and a caption with ``<end>`` as their last word, so that a truncated caption wins less.

    Raises:
        ValueError: strings stand where lists of words belong, or there are no references with words.
    """
    check_references(references)
    check_words(words)
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
        self.smoothing = smoothing
        self.score_end = score_end

    def __call__(self, references: References, words: Sequence[str], ended: bool) -> float:
        """Sentence BLEU of ``words``; 0 for a caption without words."""
        if self.score_end:
            references, words = with_end(references, words, ended)
        return sentence_bleu(references, words, self.weights, self.smoothing)


class CiderReward:
    """CIDEr-D, in [0, 10], as self-critical training uses it (Rennie et al. 2017), with ``<end>`` as a word.

    Args:
        training: the split whose references say which n-grams are common.
    """

    def __init__(self, training: CaptionDataset) -> None:
        self.frequencies = _frequencies(training)

    def __call__(self, references: References, words: Sequence[str], ended: bool) -> float:
        """CIDEr-D of ``words``; 0 for a caption without words."""
        return cider_d(*with_end(references, words, ended), self.frequencies)


_COUNTED: dict[str, DocumentFrequencies] = {}  # by fingerprint of the split


def _frequencies(training: CaptionDataset) -> DocumentFrequencies:
    """Document frequencies of a split, counted once a process."""
    told = "" if training.procedural else digest(training)
    key = f"{training.name} {training.split} {training.fingerprint()} {told}"
    if key not in _COUNTED:
        rows = tqdm(range(len(training)), desc="document frequencies", unit="image", leave=False, delay=2)
        _COUNTED[key] = DocumentFrequencies.of(with_end(training.references(row), (), True)[0] for row in rows)
    return _COUNTED[key]


class RougeReward:
    """ROUGE-L, in [0, 1], with ``<end>`` as a word."""

    def __call__(self, references: References, words: Sequence[str], ended: bool) -> float:
        """ROUGE-L of ``words``; 0 for a caption without words."""
        return rouge_l(*with_end(references, words, ended))


class WeightedSum:
    """A sum of rewards.

    Args:
        terms: rewards and their weights.
    """

    def __init__(self, terms: Sequence[tuple[float, RewardFn]]) -> None:
        self.terms = tuple(terms)

    def __call__(self, references: References, words: Sequence[str], ended: bool) -> float:
        """Σ weight · reward of ``words``."""
        return sum(weight * reward(references, words, ended) for weight, reward in self.terms)


_REWARDS: dict[str, Callable[[TrainingSplit], RewardFn]] = {
    "bleu": lambda training: BleuReward(),
    "cider": lambda training: CiderReward(training()),
    "rouge-l": lambda training: RougeReward(),
}
_OWN: dict[str, RewardFn] = {}


def register_reward(name: str, reward: RewardFn) -> None:
    """Let environments be made with ``reward=name``.

    Args:
        name: without ``+`` and ``*``, which write sums, and without spaces around it.
        reward: any function of references, words and whether ``<end>`` was said.

    Raises:
        ValueError: the name is taken by another reward, or cannot be told from a sum.
    """
    if not name or name != name.strip() or set("+*") & set(name):
        raise ValueError(
            f"{name!r} cannot name a reward; choose one without '+' and '*', which write sums, or spaces around it"
        )
    if name in _REWARDS or _OWN.get(name, reward) is not reward:
        raise ValueError(f"a reward named {name!r} is registered already; choose another name")
    _OWN[name] = reward


def make_reward(name: str, training: TrainingSplit) -> RewardFn:
    """Build a reward.

    Args:
        name: ``bleu``, ``cider``, ``rouge-l`` or a registered name; or a sum of them, as in ``bleu + 0.5 * cider``.
        training: gives the training split, for rewards that learn from its references which n-grams are common.

    Raises:
        ValueError: no reward has that name, or a weight is not a finite number.
    """
    if not isinstance(name, str):
        raise ValueError(f"reward must be a name such as 'bleu', got {name!r}")
    terms = [_term(term, name, training) for term in re.split(r"(?<![0-9][eE])\+", name)]  # 1e+2 is a number
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else WeightedSum(terms)


def _term(term: str, whole: str, training: TrainingSplit) -> tuple[float, RewardFn]:
    *factors, name = (part.strip() for part in term.split("*"))
    try:
        weight = math.prod(map(float, factors))
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"{term.strip()!r} in reward {whole!r} has no finite number as its weight; write 0.5 * cider")
    if name in _REWARDS:
        return weight, _REWARDS[name](training)
    if name not in _OWN:
        raise ValueError(f"unknown reward {name!r}; registered are: {', '.join(sorted([*_REWARDS, *_OWN]))}")
    return weight, _OWN[name]
