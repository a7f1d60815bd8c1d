"""ROUGE-L: the longest common subsequence of a caption and a reference (Lin 2004)."""

from __future__ import annotations

from glimpse_env.metrics.ngrams import References, Words, check_caption

_BETA = 1.2  # recall counts β² times as much as precision, as in the COCO evaluation


def longest_common_subsequence(first: Words, second: Words) -> int:
    """Length of the longest sequence of words that both have in the same order."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0  # length for one word less of both
        for column, match in enumerate(second, 1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if word == match else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]


def rouge_l(references: References, hypothesis: Words) -> float:
    """ROUGE-L of one caption, in [0, 1]: the F-measure of the best precision and the best recall over the references.

    A caption without words scores 0.

    Raises:
        ValueError: a string is passed for a list of words, or no reference has words.
    """
    check_caption(references, hypothesis)
    common = [longest_common_subsequence(hypothesis, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(count / len(reference) for count, reference in zip(common, references, strict=True) if reference)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
