"""BLEU of B captions while they grow, counted word by word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.metrics.bleu import BLEU4, _log_brevity, _smoothed_logs, check_scoring
from glimpse_env.metrics.ngram_table import Prepared, ReferenceTable


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
