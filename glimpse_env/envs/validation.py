"""Checks of the arguments of ``reset`` and ``set_state``."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def draw_row(generator: np.random.Generator, num_images: int) -> int:
    """A row, from a uniform number in [0, 1), which costs a tenth of ``generator.integers``."""
    return int(generator.random() * num_images)


def read_options(options: object) -> dict[str, Any]:
    """A copy of the argument ``reset(options=…)``.

    Raises:
        ValueError: it is neither a dict nor None.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"reset options {options!r} are no dict; expected such as {{'image': 3}}, or None")
    return dict(options or {})


def requested_row(options: dict[str, Any] | None, num_images: int) -> int | None:
    """The image that ``reset(options=…)`` names; None when it names none.

    Raises:
        ValueError: another option, no such row, or options that are no dict.
    """
    options = read_options(options)
    unknown = sorted(options.keys() - {"image"}, key=str)
    if unknown:
        raise ValueError(f"unknown reset option {unknown[0]!r}; the only one is 'image', a row of the split")
    row = options.get("image")
    if row is None:
        return None
    if not isinstance(row, (int, np.integer)) or isinstance(row, bool) or not 0 <= row < num_images:
        raise ValueError(f"image {row!r} does not exist; expected a row of the split, an integer in [0, {num_images})")
    return int(row)


def check_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """A seed, or None, for each of N environments; an integer s seeds environment i with s + i.

    Raises:
        ValueError: another number of seeds, or one that is neither None nor an integer of at least 0.
    """
    if seed is None:
        return [None] * num_envs
    value: Any = seed.tolist() if isinstance(seed, (np.ndarray, np.generic)) else seed
    if isinstance(value, int):
        seeds: list[Any] = [value + index for index in range(num_envs)]
    else:
        seeds = list(value) if isinstance(value, Sequence) else [value] * num_envs
    if len(seeds) != num_envs:
        raise ValueError(f"expected one seed for each of {num_envs} environments, got {len(seeds)}")
    for value in seeds:
        if value is not None and (not isinstance(value, (int, np.integer)) or value < 0):
            raise ValueError(f"{value!r} is no seed; expected integers of at least 0, or None")
    return [None if value is None else int(value) for value in seeds]


def check_state(state: object, types: Mapping[str, Any]) -> None:
    """Check that the argument of ``set_state`` has the entries that ``get_state`` returns, of these ``types``.

    Raises:
        ValueError: an entry is missing or of another type.
    """
    if not isinstance(state, Mapping):
        raise ValueError(
            f"state is not one of get_state: it is {reprlib.repr(state)}, expected what get_state returned"
        )
    for name, expected in types.items():
        if name not in state or not isinstance(state[name], expected):
            value = reprlib.repr(state[name]) if name in state else "missing"
            raise ValueError(
                f"state is not one of get_state: its {name!r} is {value}; take it from an environment made alike"
            )


def check_generator(generator: np.random.Generator, state: Any) -> None:
    """Check that ``state`` is a state of generators of this kind, and leave the generator as it is.

    Raises:
        ValueError: it is not.
    """
    current = generator.bit_generator.state
    try:
        generator.bit_generator.state = state
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValueError(f"state is not one of get_state: {reprlib.repr(state)} is no state of a generator") from error
    finally:
        generator.bit_generator.state = current
