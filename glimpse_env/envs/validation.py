"""Checks of what a user passes to ``reset`` and ``set_state``."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def draw_rows(uniforms: npt.ArrayLike, num_images: int) -> npt.NDArray[np.int64]:
    """Rows, (B,), int64, from uniform numbers in [0, 1), (B,), which cost a tenth of ``generator.integers``."""
    return (np.asarray(uniforms) * num_images).astype(np.int64)


def reset_options(options: object) -> dict[str, Any]:
    """What ``reset(options=…)`` was handed, as a dict of its own.

    Raises:
        ValueError: it is neither a dict nor None.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"reset options {options!r} are no dict; expected such as {{'image': 3}}, or None")
    return dict(options or {})


def check_state(state: object, parts: Mapping[str, Any]) -> None:
    """See that a state has the parts that ``get_state`` gives it.

    Args:
        state: what is to be gone back to.
        parts: the type of each part.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(state, Mapping):
        raise ValueError(
            f"state is not one of get_state: it is {reprlib.repr(state)}, expected what get_state returned"
        )
    wrong = [name for name in parts if name not in state or not isinstance(state[name], parts[name])]
    if wrong:
        there = reprlib.repr(state[wrong[0]]) if wrong[0] in state else "missing"
        raise ValueError(
            f"state is not one of get_state: its {wrong[0]!r} is {there}; take it from an environment made alike"
        )


def check_generator(generator: np.random.Generator, state: Any) -> None:
    """See that a state is one of a generator of this kind.

    Raises:
        ValueError: it is not.
    """
    own = generator.bit_generator.state
    try:
        generator.bit_generator.state = state
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"state is not one of get_state: {reprlib.repr(state)} is no state of a generator") from error
    finally:
        generator.bit_generator.state = own


def chosen_row(options: dict[str, Any] | None, num_images: int) -> int | None:
    """The image that ``reset(options=…)`` asks for; None when it asks for none.

    Raises:
        ValueError: another option, no such row, or options that are no dict.
    """
    asked = reset_options(options)
    unknown = sorted(asked.keys() - {"image"}, key=str)
    if unknown:
        raise ValueError(f"unknown reset option {unknown[0]!r}; the only one is 'image', a row of the split")
    row = asked.get("image")
    if row is None:
        return None
    if not isinstance(row, (int, np.integer)) or isinstance(row, bool) or not 0 <= row < num_images:
        raise ValueError(f"image {row!r} does not exist; expected a row of the split, an integer in [0, {num_images})")
    return int(row)
