"""What a caption is worth: rewards by name.

A reward compares words with references. It does not know episodes; when it is paid out is for the dynamics to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from glimpse_env.bleu import order_weights, sentence_bleu
from glimpse_env.vocabulary import END_WORD


class RewardFn(Protocol):
    """Scores a caption, finished or not."""

    def __call__(self, references: Sequence[Sequence[str]], words: Sequence[str], ended: bool) -> float:
        """The worth of a caption.

        Args:
            references: the reference captions.
            words: the caption so far, without ``<end>``.
            ended: whether ``<end>`` was said.
        """
        ...


class BleuReward:
    """Sentence BLEU, in [0, 1], with ``<end>`` scored as a word so that a truncated caption wins less.

    Args:
        order: longest n-gram, 1 to 4.
        smoothing: nltk's smoothing method, 0 to 4.
        score_end: whether ``<end>`` counts as a word.
    """

    def __init__(self, order: int = 4, smoothing: int = 1, score_end: bool = True) -> None:
        self.weights = order_weights(order)
        self.smoothing = smoothing
        self.score_end = score_end

    def __call__(self, references: Sequence[Sequence[str]], words: Sequence[str], ended: bool) -> float:
        """Sentence BLEU of ``words``; 0 for a caption without words."""
        if self.score_end:
            references = [[*reference, END_WORD] for reference in references]
            words = [*words, END_WORD] if ended else words
        return sentence_bleu(references, words, self.weights, self.smoothing) if words else 0.0


_REWARDS: dict[str, Callable[[], RewardFn]] = {"bleu": BleuReward}


def register_reward(name: str, make: Callable[[], RewardFn]) -> None:
    """Let environments be made with ``reward=name``; ``make()`` builds the reward.

    Raises:
        ValueError: the name is taken by another reward.
    """
    if _REWARDS.get(name, make) is not make:
        raise ValueError(f"a reward named {name!r} is registered already; choose another name")
    _REWARDS[name] = make


def make_reward(name: str) -> RewardFn:
    """Build the reward registered under ``name``.

    Raises:
        ValueError: no reward has that name.
    """
    if name not in _REWARDS:
        raise ValueError(f"unknown reward {name!r}; registered are: {', '.join(sorted(_REWARDS))}")
    return _REWARDS[name]()
