"""Captions as lists of words: what may stand for one, and their n-grams.

What every score of captions shares. It knows no scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

Words = Sequence[str]
References = Sequence[Words]  # the captions people wrote about one image


def check_words(words: Words) -> None:
    """Refuse a string where a list of words belongs: its letters would be scored as words.

    Raises:
        ValueError: it is a string.
    """
    if isinstance(words, str):
        raise ValueError(f"a caption must be a list of words, got the string {words!r}; split it into words")


def check_references(references: References) -> None:
    """Refuse what cannot be scored, or would be scored as something else.

    Raises:
        ValueError: there are no references with words, or a string stands where a list of words belongs.
    """
    if isinstance(references, str) or any(isinstance(reference, str) for reference in references):
        raise ValueError(f"references must be lists of words, got the string in {references!r}; split it into words")
    if not any(len(reference) for reference in references):
        raise ValueError(f"every caption needs at least one reference with words, got {references!r}")


def ngrams(words: Words, order: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of ``order`` words of a caption, one after the other."""
    return zip(*(words[start:] for start in range(order)), strict=False)


def count_ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of ``order`` words stands in a caption."""
    return Counter(ngrams(words, order))
