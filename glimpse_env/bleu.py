"""BLEU, the reward of every caption and the figure of every table (Papineni et al. 2002).

The one place in the project that scores n-grams: one caption, a corpus, or B captions that grow word by word. All three
count, and hand their counts to ``bleu``. It knows words and their ids, and no models.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.ngrams import References, Words, check_references, check_words, count_ngrams
from glimpse_env.references import Prepared, ReferenceTable

BLEU4 = (0.25, 0.25, 0.25, 0.25)
SMOOTHINGS = range(5)


class BleuStatistics(NamedTuple):
    """The counts that BLEU is made of; those of a corpus are the sums over its captions.

    Attributes:
        matches: n-grams said that a reference has too, clipped to its count there, by order: (…, N), float64.
        totals: n-grams said, at least 1 a caption as nltk counts them, by order: (…, N), float64.
        length: words said, (…), float64.
        reference_length: words of the closest reference, the shorter of two at one distance, (…), float64.
    """

    matches: Tensor
    totals: Tensor
    length: Tensor
    reference_length: Tensor


def bleu(statistics: BleuStatistics, weights: Sequence[float] = BLEU4, smoothing: int = 0) -> Tensor:
    """BLEU of counts, (…), float64, in [0, 1].

    Args:
        statistics: of one caption, of many, or summed over a corpus.
        weights: weight of each n-gram order, from 1; as many as the statistics have orders.
        smoothing: what stands for the precision of an order without a match (Chen and Cherry 2014, numbered as nltk
            does). 0: nothing; 1: a tenth of a match; 2: a match more and an n-gram more in every order but the first;
            3: 1/2ᵏ of a match at the k-th such order; 4: that times ln(length)/5.
    """
    matches, totals, length, reference_length = statistics
    logs = _smoothed_logs(matches, totals, length, smoothing) * matches.new_tensor(weights)
    brevity = _log_brevity(reference_length, length)
    return torch.where(matches[..., 0] > 0, (logs.sum(-1) + brevity).exp(), 0.0)


def _log_brevity(reference_length: Tensor, length: Tensor) -> Tensor:
    """Logarithm of the brevity penalty of captions of ``length`` words, (…), float64."""
    return (1 - reference_length / length.clamp(min=1).double()).clamp_(max=0)


def _smoothed_logs(matches: Tensor, totals: Tensor, length: Tensor, smoothing: int) -> Tensor:
    """Logarithm of each order's precision, (…, N); what is left unsmoothed without a match has no say, as in nltk."""
    missing = matches == 0
    if smoothing == 2:
        more = torch.ones_like(matches)
        more[..., 0] = 0
        return ((matches + more) / (totals + more)).log().nan_to_num(0.0, 0.0, 0.0)
    if smoothing == 0:
        stand_in = totals * sys.float_info.min
    elif smoothing == 1:
        stand_in = torch.full_like(matches, 0.1)
    else:
        stand_in = torch.exp2(-missing.cumsum(-1).to(matches.dtype))
    if smoothing == 4:
        stand_in = stand_in * (length.log() / 5).clamp(min=0).unsqueeze(-1)  # not for a single word
    return (torch.where(missing, stand_in, matches) / totals).log().nan_to_num(0.0, 0.0, 0.0)


def order_weights(order: int) -> tuple[float, ...]:
    """Equal weights of the n-grams up to ``order``: BLEU-1 to BLEU-4.

    Raises:
        ValueError: order is not 1, 2, 3 or 4.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"BLEU order must be 1, 2, 3 or 4, got {order!r}")
    return (1 / order,) * order


def check_scoring(weights: Sequence[float], smoothing: int) -> None:
    """Refuse weights and smoothing methods that BLEU does not have.

    Raises:
        ValueError: no weights, a weight that is not a finite number, or an unknown smoothing method.
    """
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing must be one of 0, 1, 2, 3, 4 (nltk's methods), got {smoothing!r}")
    given = np.asarray(weights)
    if given.ndim != 1 or not given.size or given.dtype.kind not in "biuf" or not np.isfinite(given).all():
        raise ValueError(f"weights must be one finite number for each n-gram order, got {weights!r}")


def sentence_statistics(references: References, hypothesis: Words, orders: int = 4) -> BleuStatistics:
    """The counts of one caption.

    Args:
        references: the reference captions, as lists of words.
        hypothesis: the caption, as a list of words.
        orders: N, the longest n-gram.

    Raises:
        ValueError: strings stand where lists of words belong, or there are no references with words.
    """
    check_references(references)
    check_words(hypothesis)
    matches, length = [], len(hypothesis)
    for order in range(1, orders + 1):
        said = count_ngrams(hypothesis, order)
        limits: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            limits |= count_ngrams(reference, order)  # the larger count of each
        matches.append((said & limits).total())
    totals = [max(length - order + 1, 1) for order in range(1, orders + 1)]
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return BleuStatistics(*(torch.tensor(part, dtype=torch.float64) for part in (matches, totals, length, closest)))


def sentence_bleu(
    references: References, hypothesis: Words, weights: Sequence[float] = BLEU4, smoothing: int = 0
) -> float:
    """BLEU of one caption, in [0, 1]; equal to ``nltk.translate.bleu_score.sentence_bleu``.

    Args:
        references: the reference captions, as lists of words.
        hypothesis: the caption, as a list of words.
        weights: weight of each n-gram order, from 1.
        smoothing: 0 to 4, nltk's ``SmoothingFunction().method0`` to ``method4`` (Chen and Cherry 2014).

    Raises:
        ValueError: no references, strings instead of lists of words, bad weights, or an unknown smoothing method.
    """
    return corpus_bleu([references], [hypothesis], weights, smoothing)


def corpus_bleu(
    references: Sequence[References],
    hypotheses: Sequence[Words],
    weights: Sequence[float] = BLEU4,
    smoothing: int = 0,
) -> float:
    """Corpus BLEU with brevity penalty, in [0, 1]; equal to ``nltk.translate.bleu_score.corpus_bleu``.

    Args:
        references: for every caption its reference captions.
        hypotheses: the captions.
        weights: weight of each n-gram order, from 1.
        smoothing: 0 to 4, as in ``sentence_bleu``.

    Raises:
        ValueError: no captions, unequal numbers of both, or as ``sentence_bleu``.
    """
    check_scoring(weights, smoothing)
    statistics = corpus_statistics(references, hypotheses, len(weights))
    return float(bleu(BleuStatistics(*(part.sum(0) for part in statistics)), weights, smoothing))


def corpus_statistics(references: Sequence[References], hypotheses: Sequence[Words], orders: int = 4) -> BleuStatistics:
    """The counts of every caption, (captions, …); their sums over any choice of captions give its corpus BLEU.

    Raises:
        ValueError: no captions, unequal numbers of captions and references, or as ``sentence_statistics``.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} captions but references for {len(references)}; they must pair up")
    if not hypotheses:
        raise ValueError("BLEU needs at least one caption, got none")
    each = [sentence_statistics(refs, words, orders) for refs, words in zip(references, hypotheses, strict=True)]
    return BleuStatistics(*(torch.stack(parts) for parts in zip(*each, strict=True)))


class CaptionCounts(NamedTuple):
    """What ``IncrementalBleu`` knows of B captions.

    Attributes:
        grams: the n-gram said last, by order from 0 to N − 1, as ``ReferenceTable`` writes it, negative where there are
            fewer words: (B, N), int64.
        room: how often each n-gram may still be matched, (B, G), int16.
        matches: clipped matches by order, (B, N), int64.
        length: words said, (B,), int64.
        keys: of the n-grams of the references, as ``ReferenceTable`` has them, (B, G), int64.
        closest: words of the closest reference by length, as ``Prepared`` has them, (B, W), int16.
    """

    grams: Tensor
    room: Tensor
    matches: Tensor
    length: Tensor
    keys: Tensor
    closest: Tensor


class IncrementalBleu:
    """BLEU of B captions that grow word by word; a word costs the same whatever was said before.

    ``append`` looks at no value, so that a GPU's stream is never waited for.

    Args:
        table: the references.
        captions: B.
        weights: weight of each n-gram order; as many as the table has orders.
        smoothing: 0 to 4, as in ``sentence_bleu``.
        max_length: T, the most words a caption may have; the scores of all counts up to it are tabulated.
        device: where the counting is done.

    Raises:
        ValueError: bad weights, weights of other orders than the table's, or an unknown smoothing method.
    """

    def __init__(
        self,
        table: ReferenceTable,
        captions: int,
        weights: Sequence[float] = BLEU4,
        smoothing: int = 0,
        max_length: int = 20,
        device: torch.device | str = "cpu",
    ) -> None:
        check_scoring(weights, smoothing)
        if len(weights) != table.orders:
            raise ValueError(f"{len(weights)} weights but a table of {table.orders} orders; they must agree")
        self.table, self._smoothing = table, smoothing
        self.device = torch.device(device)
        logs, unmatched = tabulate(weights, smoothing, max_length)
        self._logs = logs.flatten().to(self.device)
        self._unmatched = None if unmatched is None else unmatched.flatten().to(self.device)
        starts = torch.arange(logs[..., 0].numel()).reshape(logs.shape[:2]) * logs.shape[2]
        self._base = starts.t().contiguous().to(self.device)  # (T + 1, N): where the logs of a length and order begin
        keys = np.full((captions, 1), table.LAST, np.int64)
        nothing = np.zeros_like(keys, np.int16)
        self.counts = self._fresh(Prepared(keys, nothing, nothing, np.zeros((captions, table.orders), np.int64)))

    def _fresh(self, prepared: Prepared) -> CaptionCounts:
        keys, limits, closest = (torch.from_numpy(part).to(self.device) for part in prepared[:3])
        grams = torch.full((len(keys), self.table.orders), -1, device=self.device)
        grams[:, 0] = 0
        length = torch.zeros(len(keys), dtype=torch.int64, device=self.device)
        return CaptionCounts(grams, limits, torch.zeros_like(grams), length, keys, closest)

    def begin(self, slots: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        """Start captions anew.

        Args:
            slots: which ones, (B',).
            rows: the image of each, (B',).

        Raises:
            ValueError: an image has no references with words.
        """
        fresh = self._fresh(self.table[rows])
        if np.array_equal(slots, np.arange(len(self.counts.length))):
            self.counts = fresh
            return
        self.counts = self._fitted(self.counts, fresh)
        fresh = self._fitted(fresh, self.counts)  # counts restored from another table may be the wider ones
        places = torch.from_numpy(slots).to(self.device)
        for kept, new in zip(self.counts, fresh, strict=True):
            kept[places] = new

    def _fitted(self, counts: CaptionCounts, others: CaptionCounts) -> CaptionCounts:
        """``counts`` with room for the references of ``others``."""
        return counts._replace(
            room=_fitted(counts.room, others.room.shape[1], 0),
            keys=_fitted(counts.keys, others.keys.shape[1], self.table.LAST),
            closest=_widened(counts.closest, others.closest.shape[1]),
        )

    def append(self, words: Tensor, said: Tensor | None = None) -> None:
        """Let captions grow by a word.

        Args:
            words: ids, (B,), int64.
            said: which captions grow, (B,), bool; the words of the others are not read. None for all.
        """
        grams, room, matches, length, known, _ = self.counts
        keys = torch.add(words.unsqueeze(1) + 1, grams, alpha=self.table.base)  # (B, N)
        place = torch.searchsorted(known, keys)  # below G: the last key of a row is larger than any
        found = known.gather(1, place) == keys
        if said is not None:
            found &= said.unsqueeze(1)
        matched = room.gather(1, place).gt_(0).mul_(found)  # (B, N), int16
        matches += matched
        length += 1 if said is None else said
        room.scatter_add_(1, place, matched.neg_())
        grown = keys[:, :-1]
        grams[:, 1:].copy_(grown if said is None else torch.where(said.unsqueeze(1), grown, grams[:, 1:]))

    def scores(self) -> Tensor:
        """BLEU of every caption as it stands, (B,), float64.

        Raises:
            IndexError: a caption has more words than ``max_length``; on a GPU the device says so.
        """
        _, _, matches, length, _, _ = self.counts
        logs = self._logs.take(self._base.index_select(0, length).add_(matches)).sum(1)
        if self._unmatched is not None:
            logs += self._unmatched.take((matches > 0).sum(1) * len(self._base) + length)
        return logs.add_(_log_brevity(_closest(self.counts.closest, length), length)).exp_()

    def fork(self, parents: Tensor) -> None:
        """Let caption b go on from what caption ``parents[b]`` said, (B,), int64."""
        self.counts = CaptionCounts(*(part[parents] for part in self.counts))

    def snapshot(self) -> CaptionCounts:
        """A copy of the counts, for planning."""
        return CaptionCounts(*(part.clone() for part in self.counts))

    def restore(self, counts: CaptionCounts) -> None:
        """Go back to a ``snapshot``."""
        self.counts = CaptionCounts(*(part.clone() for part in counts))


def tabulate(weights: Sequence[float], smoothing: int, max_length: int) -> tuple[Tensor, Tensor | None]:
    """Weighted logarithms of precisions for captions of up to T words.

    An order without a match leaves the longer ones without. With smoothing 3 and 4 what stands for it depends on how
    many orders are so; then a second table holds the sum of those, and the first 0 for them.

    Returns:
        By order, length and matches, (N, T + 1, T + 1); and by number of orders with matches and length,
        (N + 1, T + 1), or None. Where no word matches one of them is −∞.
    """
    orders, stride = len(weights), max_length + 1
    weight = torch.tensor(weights, dtype=torch.float64)
    length = torch.arange(stride, dtype=torch.float64)
    totals = (length.unsqueeze(1) - torch.arange(orders)).clamp(min=1)  # (T + 1, N)
    count = torch.arange(stride, dtype=torch.float64).reshape(-1, 1, 1).expand(-1, stride, orders)
    logs = _smoothed_logs(count, totals, length, smoothing) * weight  # (matches, length, N)
    unmatched = None
    if smoothing in (3, 4):
        logs[0] = 0
        some = torch.ones(orders + 1, orders, dtype=torch.float64).tril(-1).unsqueeze(1).expand(-1, stride, -1)
        unmatched = (_smoothed_logs(some, totals, length, smoothing) * weight * (some == 0)).sum(-1)
        unmatched[0] = -torch.inf
    else:
        logs[0, :, 0] = -torch.inf
    return logs.permute(2, 1, 0).contiguous(), unmatched


def _closest(closest: Tensor, length: Tensor) -> Tensor:
    """Words of the reference closest to each caption, (B,), of their table (B, W)."""
    return closest.gather(1, length.clamp(max=closest.shape[1] - 1).unsqueeze(1)).squeeze(1)


def _widened(values: Tensor, width: int) -> Tensor:
    """``values`` (B, W) with at least ``width`` columns, new ones like the last."""
    more = width - values.shape[1]
    return torch.cat([values, values[:, -1:].expand(-1, more)], 1) if more > 0 else values


def _fitted(values: Tensor, width: int, fill: int) -> Tensor:
    """``values`` (B, W) with at least ``width`` columns, new ones filled."""
    more = width - values.shape[1]
    return torch.nn.functional.pad(values, (0, more), value=fill) if more > 0 else values
