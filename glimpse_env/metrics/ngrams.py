"""Captions as lists of words: checks of what users pass, and n-grams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

Words = Sequence[str]
References = Sequence[Words]  # the captions people wrote about one image


def check_references(references: References) -> None:
    """Check references.

    Raises:
        ValueError: a string is passed for a list of words, or no reference has words.
    """
    if isinstance(references, str) or any(isinstance(reference, str) for reference in references):
        raise ValueError(f"references must be lists of words, got the string in {references!r}; split it into words")
    if not any(len(reference) for reference in references):
        raise ValueError(f"every caption needs at least one reference with words, got {references!r}")


def check_caption(references: References, words: Words) -> None:
    """Check a caption and its references; raises as ``check_references`` does."""
    check_references(references)
    if isinstance(words, str):
        raise ValueError(f"a caption must be a list of words, got the string {words!r}; split it into words")


def check_corpus(metric: str, references: Sequence[References], hypotheses: Sequence[Words]) -> None:
    """Check that ``metric`` has captions to score, and references for each.

    Raises:
        ValueError: no captions, or unequal numbers of captions and references.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} captions but references for {len(references)}; they must pair up")
    if not hypotheses:
        raise ValueError(f"{metric} needs at least one caption, got none")


def ngrams(words: Words, order: int) -> Iterator[tuple[str, ...]]:
    """The n-grams of ``order`` words of a caption, in their order."""
    return zip(*(words[start:] for start in range(order)), strict=False)


def count_ngrams(words: Words, order: int) -> Counter[tuple[str, ...]]:
    """Number of times that each n-gram of ``order`` words occurs in a caption."""
    return Counter(ngrams(words, order))
