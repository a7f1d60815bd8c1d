"""Checks of numbers that users pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def check_count(name: str, value: object, minimum: int) -> None:
    """Check that ``value`` is an integer of at least ``minimum``.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def check_number(name: str, value: object, rule: str, accepts: Callable[[float], bool]) -> None:
    """Check that ``value`` is a finite number that ``accepts`` returns true for; ``rule`` describes such numbers.

    Raises:
        ValueError: it is not.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not accepts(value):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be {rule}, got {value!r}")
