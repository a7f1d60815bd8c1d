"""One agent trained with several seeds: its runs by a pattern, and what they come to together.

Knows run directories and figures. It does not know how an agent is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from agents.loading import PLAYED

Figures = TypeVar("Figures", bound=tuple[Any, ...])


def seeds_of(agent: str) -> list[str]:
    """The agents that a name stands for: itself, or the run directories of a pattern such as ``runs/shapes-ppo-?``.

    A pattern may say how they are played, as in ``soft:runs/shapes-ppo-?``.

    Raises:
        FileNotFoundError: no run directory matches the pattern.
    """
    played = next((f"{way}:" for way in PLAYED if agent.startswith(f"{way}:")), "")
    pattern = Path(agent.removeprefix(played))
    if not set("*?[") & set(agent) or pattern.exists():
        return [agent]
    runs = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    found = sorted(f"{played}{run}" for run in runs if run.is_dir())
    if not found:
        raise FileNotFoundError(f"no run directory matches {agent!r}; train one, or correct the pattern")
    return found


def mean_figures(of: Sequence[Figures]) -> Figures:
    """The mean of named tuples, field by field; of lists, element by element; None where one is None."""
    kind: Any = type(of[0])
    return kind(*(_mean(field) for field in zip(*of, strict=True)))


def mean_values(of: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of dictionaries with the same names, name by name."""
    return {name: float(_mean([one[name] for one in of])) for name in of[0]}


def _mean(values: Sequence[Any]) -> Any:
    if any(value is None for value in values):
        return None
    if isinstance(values[0], list):
        return [_mean(place) for place in zip(*values, strict=True)]
    return sum(values) / len(values)
