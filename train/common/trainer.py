"""What all training runs share: the state in a checkpoint, the time of the next one, and the best score on val."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR

from glimpse_env.metrics.caption_metrics import find_metric
from train.common.distributed import Processes
from train.common.run_directory import RunDirectory


class Stateful(Protocol):
    """A module, an optimiser, a schedule, or any other object whose state can be saved and restored."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers and strings, in dicts and lists."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go back to a ``state_dict()``."""


class BaseTrainer(ABC):
    """A training run that can be stopped at any checkpoint and resumed.

    A subclass puts what it trains into ``stateful``, lists its counters in ``PROGRESS``, and implements ``run``.

    Attributes:
        stateful: modules, optimisers, schedules and generators whose states a checkpoint holds, by name.
        metric: the metric that weights are chosen by, the first one of the world.
        best: best score on val; −1, or infinity for an error rate, before the first one.
        best_step: epoch, update or environment step of that score.
        seconds: time spent on training.
    """

    PROGRESS: ClassVar[tuple[str, ...]] = ()
    """Attributes of the subclass (numbers and strings) that a checkpoint holds beside best, best_step and seconds."""
    STEP: ClassVar[str] = "{:,} steps"
    """How a value of ``best_step`` is printed."""

    def __init__(self, checkpoint_minutes: float, processes: Processes | None = None, metric: str = "bleu") -> None:
        self.processes = processes or Processes()
        self.stateful: dict[str, Stateful | torch.Generator] = {}
        self.metric = metric
        self.best = -1.0 if find_metric(metric).higher_is_better else math.inf
        self.best_step, self.seconds = 0, 0.0
        self._checkpoint_seconds, self._saved = 60 * checkpoint_minutes, time.monotonic()

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, but for the global generators, which ``RunDirectory`` saves."""
        state: dict[str, Any] = {
            name: item.get_state() if isinstance(item, torch.Generator) else item.state_dict()
            for name, item in self.stateful.items()
        }
        names = ("best", "best_step", "seconds", *self.PROGRESS)
        return state | {"progress": {name: getattr(self, name) for name in names}}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a ``state()``."""
        for name, item in self.stateful.items():
            if isinstance(item, torch.Generator):
                item.set_state(state[name])
            else:
                item.load_state_dict(state[name])
        for name, value in state["progress"].items():
            setattr(self, name, value)

    def checkpoint_due(self) -> bool:
        """Whether ``checkpoint_minutes`` have passed since the last checkpoint."""
        return time.monotonic() - self._saved > self._checkpoint_seconds

    def save(self, directory: RunDirectory) -> None:
        """Write a checkpoint."""
        directory.save(self.state())
        self._saved = time.monotonic()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that the block takes to ``seconds``."""
        start = time.monotonic()
        yield
        self.seconds += time.monotonic() - start

    def improved(self, score: float, step: int) -> bool:
        """Whether ``score`` is the best so far; if so, ``best`` and ``best_step`` become this one."""
        if better := score > self.best if find_metric(self.metric).higher_is_better else score < self.best:
            self.best, self.best_step = score, step
        return better

    @abstractmethod
    def run(self, directory: RunDirectory) -> None:
        """Train to the end, with metrics, checkpoints and the best weights in ``directory``."""

    def complete(self, directory: RunDirectory, resume: bool = False) -> None:
        """Train from the start, or from the checkpoint where ``resume`` is set, and print the best score."""
        if resume:
            self.load(directory.restore())
        self._saved = time.monotonic()
        self.run(directory)
        directory.close()
        if self.processes.is_main:
            step = self.STEP.format(self.best_step)
            print(
                f"best val {find_metric(self.metric).title} {self.best:.4f} after {step}; weights in {directory.path}"
            )


def cosine_schedule(optimiser: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """A learning rate that falls from its start to zero along a half cosine of ``steps`` steps."""
    return LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))


def val_notes(metrics: dict[str, float]) -> dict[str, float]:
    """The scores on val among ``metrics``, rounded to four digits, for the metadata of a weights file."""
    return {name: round(value, 4) for name, value in metrics.items() if name.startswith("val/")}
