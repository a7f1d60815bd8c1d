"""BLEU of B unfinished captions, updated word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.core.arrays import Integers
from glimpse_env.metrics.bleu import BLEU4, check_scoring, log_brevity, log_precisions
from glimpse_env.metrics.references import ReferenceTable


class CaptionCounts(NamedTuple):
    """The state of ``IncrementalBleu`` for B captions.

    Attributes:
        grams: key of the last n-gram, by order from 0 to N − 1, as in ``ReferenceTable``, negative where there are
            fewer words: (B, N), int64.
        room: number of times that each n-gram may still be matched, (B, G), int16.
        matches: clipped matches by order, (B, N), int64.
        length: number of words, (B,), int64.
        keys: of the n-grams of the references, as in ``ReferenceTable``, (B, G), int64.
        closest: length of the closest reference, as in ``ReferenceCounts``, (B, W), int16.
    """

    grams: Tensor
    room: Tensor
    matches: Tensor
    length: Tensor
    keys: Tensor
    closest: Tensor


class IncrementalBleu:
    """BLEU of B captions that grow word by word; the cost of a word does not depend on the caption's length.

    ``append`` reads no value back from the device, so it never waits for a GPU.

    Args:
        table: the references.
        captions: B.
        weights: weight of each n-gram order; as many as the table has orders.
        smoothing: 0 to 4, as in ``sentence_bleu``.
        max_length: T, the most words of a caption.
        device: where the counts are held.

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
        self.table = table
        self.device = torch.device(device)
        logs, unmatched = tabulate_log_precisions(weights, smoothing, max_length)
        self._logs = logs.flatten().to(self.device)
        self._unmatched = None if unmatched is None else unmatched.flatten().to(self.device)
        starts = torch.arange(logs[..., 0].numel()).reshape(logs.shape[:2]) * logs.shape[2]
        self._base = starts.t().contiguous().to(self.device)  # (T + 1, N): where the logs of a length and order begin
        keys = np.full((captions, 1), table.SENTINEL, np.int64)
        zeros = np.zeros_like(keys, np.int16)
        self.counts = self._empty(keys, zeros, zeros)

    def _empty(self, keys: Integers, limits: npt.NDArray[np.int16], closest: npt.NDArray[np.int16]) -> CaptionCounts:
        """Counts of captions without words; arguments as in ``ReferenceCounts``."""
        grams = torch.full((len(keys), self.table.orders), -1, device=self.device)
        grams[:, 0] = 0
        length = torch.zeros(len(keys), dtype=torch.int64, device=self.device)
        known, room, lengths = (torch.from_numpy(array).to(self.device) for array in (keys, limits, closest))
        return CaptionCounts(grams, room, torch.zeros_like(grams), length, known, lengths)

    def begin(self, slots: Integers, rows: Integers) -> None:
        """Start new captions in ``slots`` (B',), of the images ``rows`` (B',).

        Raises:
            ValueError: an image has no references with words.
        """
        fresh = self._empty(*self.table[rows][:3])
        if np.array_equal(slots, np.arange(len(self.counts.length))):
            self.counts = fresh
            return
        self.counts = _widened(self.counts, fresh)
        fresh = _widened(fresh, self.counts)  # counts restored from another table may be the wider ones
        index = torch.from_numpy(slots).to(self.device)
        for counts, update in zip(self.counts, fresh, strict=True):
            counts[index] = update

    def append(self, words: Tensor, active: Tensor | None = None) -> None:
        """Append ``words`` (B,), int64, to the captions ``active`` (B,), bool; None for all."""
        grams, room, matches, length, known, _ = self.counts
        keys = torch.add(words.unsqueeze(1) + 1, grams, alpha=self.table.base)  # (B, N)
        columns = torch.searchsorted(known, keys)  # below G: the last key of a row is larger than any
        matched = known.gather(1, columns) == keys
        if active is not None:
            matched &= active.unsqueeze(1)
        increments = room.gather(1, columns).gt_(0).mul_(matched)  # (B, N), int16
        matches += increments
        length += 1 if active is None else active
        room.scatter_add_(1, columns, increments.neg_())
        longer = keys[:, :-1]
        grams[:, 1:].copy_(longer if active is None else torch.where(active.unsqueeze(1), longer, grams[:, 1:]))

    def scores(self) -> Tensor:
        """BLEU of every caption so far, (B,), float64.

        Raises:
            IndexError: a caption has more words than ``max_length``; on a GPU, a device-side error.
        """
        _, _, matches, length, _, closest = self.counts
        logs = self._logs.take(self._base.index_select(0, length).add_(matches)).sum(1)
        if self._unmatched is not None:
            logs += self._unmatched.take((matches > 0).sum(1) * len(self._base) + length)
        reference_length = closest.gather(1, length.clamp(max=closest.shape[1] - 1).unsqueeze(1)).squeeze(1)
        return logs.add_(log_brevity(reference_length, length)).exp_()

    def fork(self, parents: Tensor) -> None:
        """Replace caption b by a copy of caption ``parents[b]``, (B,), int64."""
        self.counts = CaptionCounts(*(counts[parents] for counts in self.counts))

    def snapshot(self) -> CaptionCounts:
        """A copy of the counts."""
        return CaptionCounts(*(counts.clone() for counts in self.counts))

    def restore(self, state: CaptionCounts) -> None:
        """Go back to a ``snapshot``."""
        self.counts = CaptionCounts(*(counts.clone() for counts in state))


def tabulate_log_precisions(weights: Sequence[float], smoothing: int, max_length: int) -> tuple[Tensor, Tensor | None]:
    """Weighted logarithms of precisions for captions of up to T words.

    Longer n-grams than the first order without a match have no match either. With smoothing methods 3 and 4 their
    precisions depend on the number of such orders; a second table then holds the sum over them, and the first 0.

    Returns:
        By order, length and matches, (N, T + 1, T + 1); and by number of orders with matches and length,
        (N + 1, T + 1), or None. Where no word matches, one of the two is −∞.
    """
    orders, stride = len(weights), max_length + 1
    weight = torch.tensor(weights, dtype=torch.float64)
    length = torch.arange(stride, dtype=torch.float64)
    totals = (length.unsqueeze(1) - torch.arange(orders)).clamp(min=1)  # (T + 1, N)
    matches = torch.arange(stride, dtype=torch.float64).reshape(-1, 1, 1).expand(-1, stride, orders)
    logs = log_precisions(matches, totals, length, smoothing) * weight  # (matches, length, N)
    unmatched = None
    if smoothing in (3, 4):
        logs[0] = 0
        matches = torch.ones(orders + 1, orders, dtype=torch.float64).tril(-1).unsqueeze(1).expand(-1, stride, -1)
        unmatched = (log_precisions(matches, totals, length, smoothing) * weight * (matches == 0)).sum(-1)
        unmatched[0] = -torch.inf
    else:
        logs[0, :, 0] = -torch.inf
    return logs.permute(2, 1, 0).contiguous(), unmatched


def _widened(counts: CaptionCounts, others: CaptionCounts) -> CaptionCounts:
    """``counts`` with at least the columns of ``others``; the last one is repeated, whose key no n-gram has."""
    wider = {}
    for name in ("room", "keys", "closest"):
        values = getattr(counts, name)
        missing = getattr(others, name).shape[1] - values.shape[1]
        if missing > 0:
            wider[name] = torch.cat([values, values[:, -1:].expand(-1, missing)], 1)
    return counts._replace(**wider)
