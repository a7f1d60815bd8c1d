"""Edit distance of captions: word and character error rates, and exact matches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from glimpse_env.metrics.ngrams import References, Words, check_caption, check_corpus


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn one sequence into the other.

    A column of the table of distances is two integers, a bit per row: where the distance is one more than in the row
    above, and where one less (Myers 1999; Hyyrö 2003). So an item of ``second`` costs a few operations, whatever
    the length of ``first``.
    """
    if not first:
        return len(second)
    occurrences: dict[Hashable, int] = {}
    for row, item in enumerate(first):
        occurrences[item] = occurrences.get(item, 0) | 1 << row
    every_row, last_row = (1 << len(first)) - 1, 1 << (len(first) - 1)
    up, down, distance = every_row, 0, len(first)
    for item in second:
        matches = occurrences.get(item, 0)
        diagonal = (((matches & up) + up) ^ up) | matches | down
        right_up, right_down = down | ~(diagonal | up), up & diagonal  # changes from the column before
        distance += bool(right_up & last_row) - bool(right_down & last_row)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        up, down = (right_down | ~(diagonal | right_up)) & every_row, right_up & diagonal & every_row
    return distance


def error_rate(references: References, words: Words, *, characters: bool = False) -> float:
    """Edits per item of the reference, the smallest over the references; an empty reference counts as one item.

    Args:
        references: the reference captions, as lists of words.
        words: the caption, as a list of words.
        characters: count characters (character error rate) instead of words (word error rate). The space between two
            words is a character, unless all words of the caption and its references are single characters themselves.

    Raises:
        ValueError: a string is passed for a list of words, or no reference has words.
    """
    return _closest(references, words, characters)[0]


def corpus_error_rate(
    references: Sequence[References], hypotheses: Sequence[Words], *, characters: bool = False
) -> float:
    """Edits of all captions per item of their closest references, those with the smallest ``error_rate``.

    Raises:
        ValueError: no captions, unequal numbers of both, or as ``error_rate``.
    """
    check_corpus("error rate", references, hypotheses)
    closest = [_closest(refs, words, characters) for refs, words in zip(references, hypotheses, strict=True)]
    return sum(distance for _, _, distance in closest) / max(1, sum(length for _, length, _ in closest))


def _closest(references: References, words: Words, characters: bool) -> tuple[float, int, int]:
    """Error rate, length and distance of the reference with the smallest rate, the shorter of two."""
    check_caption(references, words)
    if characters:
        space = "" if all(len(word) == 1 for caption in (words, *references) for word in caption) else " "
        references, words = [space.join(reference) for reference in references], space.join(words)
    distances = [(edit_distance(reference, words), len(reference)) for reference in references]
    return min((distance / max(1, length), length, distance) for distance, length in distances)


def exact(references: References, words: Words) -> float:
    """1.0 when a caption equals one of its references, else 0.0.

    Raises:
        ValueError: a string is passed for a list of words, or no reference has words.
    """
    check_caption(references, words)
    return float(any(list(reference) == list(words) for reference in references))


def corpus_exact(references: Sequence[References], hypotheses: Sequence[Words]) -> float:
    """Share of captions that equal one of their references, in [0, 1].

    Raises:
        ValueError: no captions, unequal numbers of captions and references, or as ``exact``.
    """
    check_corpus("exact", references, hypotheses)
    return sum(map(exact, references, hypotheses)) / len(hypotheses)
