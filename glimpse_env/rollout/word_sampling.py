"""Choosing a word from logits: greedy, pure sampling, top-k or top-p, from uniform numbers that the caller draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from glimpse_env.core.checks import check_count, check_number

Method = Literal["greedy", "sample", "top-k", "top-p"]


@dataclass(frozen=True)
class WordSampling:
    """How words are chosen from logits.

    Attributes:
        method: ``greedy`` takes the likeliest word; ``sample`` draws from the distribution; ``top-k`` from its
            ``top_k`` likeliest words; ``top-p`` from the smallest set of likeliest words with mass ``top_p``
            (Holtzman et al. 2020).
        temperature: divides the logits before a draw.
        top_k: number of words ``top-k`` keeps.
        top_p: mass ``top-p`` keeps, in (0, 1].

    Raises:
        ValueError: a value is outside its range.
    """

    method: Method = "greedy"
    temperature: float = 1.0
    top_k: int = 10
    top_p: float = 0.9

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"unknown decoding {self.method!r}; expected one of {', '.join(get_args(Method))}")
        check_number("temperature", self.temperature, "above 0 and finite", lambda value: value > 0)
        check_count("top_k", self.top_k, 1)
        check_number("top_p", self.top_p, "in (0, 1]", lambda value: 0 < value <= 1)

    @property
    def random(self) -> bool:
        """Whether ``choose`` needs uniform numbers."""
        return self.method != "greedy"

    def choose(self, logits: Tensor, uniforms: Tensor | None = None) -> Tensor:
        """Choose a word for every row.

        Args:
            logits: (B, V), float; −∞ for words that must not be chosen.
            uniforms: (B,), in [0, 1), float64; not read by ``greedy``.

        Returns:
            Word ids (B,), int64.
        """
        if not self.random:
            if logits.device.type == "cpu":
                return torch.from_numpy(logits.numpy().argmax(-1))  # torch's takes six times as long
            return logits.argmax(-1)
        if uniforms is None:
            raise ValueError(f"decoding {self.method!r} draws words and needs one uniform number per caption")
        exact = logits.double()
        scaled = (exact - exact.amax(-1, keepdim=True)) / self.temperature  # the likeliest word at 0: no overflow
        if self.method == "sample":  # in the order of the vocabulary: to sort takes ten times as long as to draw
            return _inverse_cdf(scaled.softmax(-1), uniforms)
        ranked, words = scaled.softmax(-1).sort(stable=True, dim=-1, descending=True)
        if self.method == "top-k":
            ranked[:, self.top_k :] = 0
        else:
            before = ranked.cumsum(-1) - ranked  # mass of the likelier words
            ranked = ranked.masked_fill(before >= self.top_p, 0)
        return words.gather(-1, _inverse_cdf(ranked, uniforms).unsqueeze(-1)).squeeze(-1)


def _inverse_cdf(mass: Tensor, uniforms: Tensor) -> Tensor:
    """Indices (B,) drawn in proportion to mass (B, V) by numbers in [0, 1), (B,)."""
    cumulative = mass.cumsum(-1)
    index = torch.searchsorted(cumulative, uniforms.unsqueeze(-1) * cumulative[:, -1:], right=True)
    trailing_zeros = (mass > 0).flip(-1).byte().argmax(-1, keepdim=True)
    return index.minimum(mass.shape[-1] - 1 - trailing_zeros).squeeze(-1)  # rounding must reach no index without mass
