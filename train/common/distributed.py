"""Several processes that train one model: each takes its share of every batch, and all take the same step.

Knows torch.distributed, as ``torchrun`` starts it: gloo between CPUs, nccl between GPUs. One process alone talks to
nobody, and what it computes is the same to the bit as without this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from train.common.options import Compute
from train.common.run_directory import RunDirectory

Settings = TypeVar("Settings", bound=Compute)
PATIENCE = timedelta(minutes=30)  # a process that waits longer for another (validation, features) gives up


class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: which of them this is.
        count: how many there are.
    """

    def __init__(self) -> None:
        joined = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if joined else 0
        self.count = distributed.get_world_size() if joined else 1

    @property
    def first(self) -> bool:
        """Whether this is the one that scores, logs and saves."""
        return self.rank == 0

    def own(self, size: int) -> slice:
        """This process's share of a batch of ``size``: parts that follow each other, as even as can be, or empty."""
        edges = np.linspace(0, size, self.count + 1).round().astype(int)
        return slice(int(edges[self.rank]), int(edges[self.rank + 1]))

    def share(self, amount: Tensor) -> Tensor:
        """What this process has of something, such as words, as a share of what all have; 1 for one alone.

        A mean over what is here, times this, is this process's part of the mean over everything.
        """
        return amount.float() / self.sum(amount.float()) if self.count > 1 else torch.ones(())

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all processes, without a gradient; of one alone the value itself."""
        if self.count == 1:
            return value.detach()
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total

    def gather(self, value: Tensor) -> Tensor:
        """The values of all processes one behind the other, along the first dimension, without a gradient."""
        if self.count == 1:
            return value.detach()
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, value.detach().cpu())
        return torch.cat(parts).to(value.device)

    def tell(self, value: Any) -> Any:
        """What the first process holds, in all."""
        if self.count == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let every parameter's gradient be the sum over all processes; one without any counts as 0."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
        distributed.all_reduce(flat)
        sizes = [parameter.numel() for parameter in trained]
        for parameter, gradient in zip(trained, flat.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def directory(self, path: Path, options: Any, resume: bool) -> RunDirectory:
        """The run's folder: the first process's to write, the others' to read once it is there.

        Raises:
            FileExistsError, FileNotFoundError, ValueError: as ``RunDirectory``.
        """
        if not self.first:
            if self.tell(None) is not None:
                raise SystemExit(1)  # the first process says why
            return ReadDirectory(path)
        try:
            found = RunDirectory(path, options, resume)
        except (OSError, ValueError) as error:
            self.tell(str(error))
            raise
        self.tell(None)
        return found

    def agree(self, module: nn.Module) -> None:
        """Give all processes the first one's weights."""
        if self.count == 1:
            return
        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, 0)

    def draw_apart(self, *where: int) -> None:
        """Let torch draw otherwise in every process, by where the run stands; one alone draws on as it did.

        So a run that is resumed with as many processes draws what it would have drawn.

        Args:
            where: numbers that are the run's own and this step's.
        """
        if self.count > 1:
            own = np.random.SeedSequence([*where, self.rank])
            torch.manual_seed(int(own.generate_state(1, np.uint64)[0] >> 1))


class ReadDirectory(RunDirectory):
    """The folder of a run that another process writes.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: dict[str, Any]) -> None:
        """Leave it to the first process."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Leave it to the first process."""

    def close(self) -> None:
        """Hold nothing."""


@contextmanager
def processes(options: Settings) -> Iterator[tuple[Processes, Settings]]:
    """Join the others that ``torchrun`` has started, if it has; gives the options with this process's own device.

    Raises:
        ValueError: ``--device`` names one GPU for all.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(), options
        return
    kind = torch.device(options.device)
    if kind.type == "cuda":
        if kind.index is not None:
            raise ValueError(f"every process takes a GPU of its own; pass --device cuda, not {options.device}")
        options = replace(options, device=f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(torch.device(options.device))
    distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(), options
    finally:
        distributed.destroy_process_group()
