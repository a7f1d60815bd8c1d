"""ROUGE-L: the longest common subsequence of a caption and a reference (Lin 2004).

Knows words. It knows no models.
"""

from __future__ import annotations

from glimpse_env.metrics.ngrams import References, Words, check_references, check_words

BETA = 1.2  # recall counts β² times what precision does, as in the COCO evaluation


def longest_common_subsequence(one: Words, other: Words) -> int:
    """Most words that stand in both in the same order."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        before = 0  # length for one word less of both
        for place, match in enumerate(other, 1):
            now = lengths[place]
            lengths[place] = before + 1 if word == match else max(now, lengths[place - 1])
            before = now
    return lengths[-1]


def rouge_l(references: References, hypothesis: Words) -> float:
    """ROUGE-L of one caption, in [0, 1]: the F-measure of the best precision and the best recall over the references.

    Args:
        references: the reference captions, as lists of words.
        hypothesis: the caption, as a list of words; without words it scores 0.

    Raises:
        ValueError: strings stand where lists of words belong, or there are no references with words.
    """
    check_references(references)
    check_words(hypothesis)
    common = [longest_common_subsequence(hypothesis, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(count / len(reference) for count, reference in zip(common, references, strict=True) if reference)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
