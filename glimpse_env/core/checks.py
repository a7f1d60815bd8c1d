"""Checks of numbers that users pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is not a whole number of at least ``least``.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_number(name: str, value: object, rule: str, holds: Callable[[float], bool]) -> None:
    """Refuse what is not a finite number for which ``holds``; ``rule`` says what that is.

    Raises:
        ValueError: it is not.
    """
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not holds(value):  # type: ignore[arg-type]
        raise ValueError(f"{name} must be {rule}, got {value!r}")
