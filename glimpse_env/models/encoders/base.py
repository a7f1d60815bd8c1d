"""What feature tables and environments need of an encoder; training and weights files need a ``CNNEncoder``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt
import torch
from torch import Tensor

from glimpse_env.core.location_grid import LocationGrid


@runtime_checkable
class Encoder(Protocol):
    """Maps inputs, such as images, to annotation vectors a = {a_1, …, a_L}, a_i ∈ ℝ^D (SAT §3.1.1)."""

    @property
    def name(self) -> str:
        """A short name, such as the backbone's, for file names and messages."""

    @property
    def grid(self) -> LocationGrid:
        """Where the L locations lie."""

    @property
    def num_locations(self) -> int:
        """L, the number of locations."""

    @property
    def feature_dim(self) -> int:
        """D, the length of an annotation vector."""

    @property
    def device(self) -> torch.device:
        """Where it encodes."""

    def to(self, device: torch.device) -> Any:
        """The encoder on a device: itself, moved, or another."""

    @property
    def encodes_single_locations(self) -> bool:
        """Whether ``encode_location`` works, at the cost of one location instead of L."""

    def encode(self, inputs: Sequence[Any]) -> Tensor:
        """Annotations (B, L, D), float, of B inputs, without gradients."""

    def encode_location(self, inputs: Sequence[Any], locations: npt.ArrayLike) -> Tensor:
        """Annotations (B, D), float, of one of ``locations`` (B,), int, of each of B inputs, without gradients.

        Raises:
            ValueError: the encoder cannot encode a location without the others.
            IndexError: a location does not exist.
        """

    def fingerprint(self) -> str:
        """A string that differs between encoders whose annotations differ."""
