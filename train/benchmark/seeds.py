"""Runs of one agent with several seeds: by a pattern of their run directories, and the mean of their figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from agents.loading import ATTENTION_MODES

Figures = TypeVar("Figures", bound=tuple[Any, ...])


def seeds_of(agent: str) -> list[str]:
    """The agents that a name stands for: itself, or the run directories of a pattern such as ``runs/shapes-ppo-?``.

    A pattern may begin with a mode of attention, as in ``soft:runs/shapes-ppo-?``.

    Raises:
        FileNotFoundError: no run directory matches the pattern.
    """
    prefix = next((f"{mode}:" for mode in ATTENTION_MODES if agent.startswith(f"{mode}:")), "")
    pattern = Path(agent.removeprefix(prefix))
    if not set("*?[") & set(agent) or pattern.exists():
        return [agent]
    matches = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    runs = sorted(f"{prefix}{run}" for run in matches if run.is_dir())
    if not runs:
        raise FileNotFoundError(f"no run directory matches {agent!r}; train one, or correct the pattern")
    return runs


def mean_figures(runs: Sequence[Figures]) -> Figures:
    """The mean of named tuples, field by field; of lists, element by element; None where one is None."""
    figures_type: Any = type(runs[0])
    return figures_type(*(_mean(values) for values in zip(*runs, strict=True)))


def mean_values(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of dictionaries with the same keys, key by key."""
    return {name: float(_mean([run[name] for run in runs])) for name in runs[0]}


def _mean(values: Sequence[Any]) -> Any:
    if any(value is None for value in values):
        return None
    if isinstance(values[0], list):
        return [_mean(elements) for elements in zip(*values, strict=True)]
    return sum(values) / len(values)
