"""The tokeniser of captions, and the vocabulary of words and their ids."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

PAD_WORD, START_WORD, END_WORD, UNK_WORD = "<pad>", "<start>", "<end>", "<unk>"
BLANK_WORD = "<blank>"  # a silent step, in vocabularies that have it: no word is added to the caption
SPECIAL_WORDS = (PAD_WORD, START_WORD, END_WORD, UNK_WORD)

_WORD = re.compile(r"'s(?![^\W_])|[^\W_]+(?:(?:-|'(?!s(?![^\W_])))[^\W_]+)*")


def tokenize(text: str) -> list[str]:
    """Split a raw caption into lower-case words without punctuation.

    As in the Penn Treebank tokeniser of the COCO evaluation, a hyphenated word is one word and a possessive ``'s`` is
    a separate word.
    """
    return _WORD.findall(text.lower())


class Vocabulary:
    """A fixed list of words, the four special ones first.

    Args:
        words: the words, without the special ones, in the order of their ids (from 4 on); ``<blank>`` may be one.

    Attributes:
        blank: id of ``<blank>``, None in a vocabulary without it.

    Raises:
        ValueError: a word occurs twice, is empty, or is one of the special words.
    """

    pad, start, end, unk = range(4)
    suppressed = (pad, start, unk)  # never generated

    def __init__(self, words: Iterable[str]) -> None:
        self.words: tuple[str, ...] = (*SPECIAL_WORDS, *words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            duplicate = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"vocabulary has the word {duplicate!r} twice; every word must stand once")
        if "" in self._ids:
            raise ValueError("vocabulary has an empty word")
        self.blank = self._ids.get(BLANK_WORD)

    @classmethod
    def from_captions(cls, captions: Iterable[Sequence[str]], min_count: int = 1, *, blank: bool = False) -> Vocabulary:
        """The words that occur at least ``min_count`` times in tokenised ``captions``, most frequent first.

        With ``blank`` the vocabulary holds ``<blank>``, too.
        """
        counts = Counter(itertools.chain.from_iterable(captions))
        frequent = [(word, count) for word, count in counts.items() if count >= min_count]
        words = [word for word, _ in sorted(frequent, key=lambda item: (-item[1], item[0])) if word != BLANK_WORD]
        return cls([BLANK_WORD, *words] if blank else words)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words)"

    def encode(self, words: Iterable[str]) -> list[int]:
        """Ids of ``words``; ``<unk>`` for those outside the vocabulary."""
        return [self._ids.get(word, self.unk) for word in words]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words of ``ids``, special ones included."""
        return [self.words[int(i)] for i in ids]

    def coverage(self, captions: Iterable[Sequence[str]]) -> float:
        """Share of the words of ``captions``, in [0, 1], that the vocabulary has (0 when there are no words)."""
        words = [word for caption in captions for word in caption]
        return sum(word in self._ids for word in words) / max(len(words), 1)
