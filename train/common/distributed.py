"""Several processes that train one model: each takes its share of every batch, and all take the same step.

``torchrun`` starts them; they talk through gloo between CPUs and nccl between GPUs. A process that runs alone computes
the same to the bit as without this module.
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

from train.common.options import CommonOptions
from train.common.run_directory import RunDirectory

Options = TypeVar("Options", bound=CommonOptions)
_TIMEOUT = timedelta(minutes=30)  # how long a process waits for another (validation, features)


class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    def __init__(self) -> None:
        joined = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if joined else 0
        self.world_size = distributed.get_world_size() if joined else 1

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, which scores, logs and saves."""
        return self.rank == 0

    def batch_slice(self, size: int) -> slice:
        """This process's share of a batch of ``size``. The shares are contiguous and as even as possible."""
        edges = np.linspace(0, size, self.world_size + 1).round().astype(int)
        return slice(int(edges[self.rank]), int(edges[self.rank + 1]))

    def fraction(self, amount: Tensor) -> Tensor:
        """This process's ``amount``, such as a number of words, divided by the sum over all; 1 for a single process.

        A mean over this process's share, times this, is its part of the mean over the batch.
        """
        return amount.float() / self.sum(amount.float()) if self.world_size > 1 else torch.ones(())

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, without a gradient."""
        if self.world_size == 1:
            return value.detach()
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total

    def gather(self, value: Tensor) -> Tensor:
        """The values of all processes, concatenated along the first dimension, without a gradient."""
        if self.world_size == 1:
            return value.detach()
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value.detach().cpu())
        return torch.cat(values).to(value.device)

    def broadcast(self, value: Any) -> Any:
        """The first process's ``value``, in all processes."""
        if self.world_size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def broadcast_weights(self, module: nn.Module) -> None:
        """Give all processes the first one's weights."""
        for tensor in module.state_dict().values() if self.world_size > 1 else ():
            distributed.broadcast(tensor, 0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every parameter's gradient with the sum over all processes; a missing gradient counts as 0."""
        if self.world_size == 1:
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

    def seed_rank(self, *entropy: int) -> None:
        """Seed torch's generator with the rank and ``entropy``: the run's seed and the numbers of this step.

        Processes then draw different numbers, and the same ones when resumed. A single process draws on as it did.
        """
        if self.world_size > 1:
            sequence = np.random.SeedSequence([*entropy, self.rank])
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def open_directory(self, path: Path, options: CommonOptions, resume: bool) -> RunDirectory:
        """The run directory: the first process opens it for writing, the others for reading once it is there.

        Raises:
            FileExistsError, FileNotFoundError, ValueError: as ``RunDirectory``.
            SystemExit: the first process could not open it, and says why.
        """
        if not self.is_main:
            if self.broadcast(None) is not None:
                raise SystemExit(1)
            return ReadOnlyRunDirectory(path)
        try:
            directory = RunDirectory(path, options, resume)
        except (OSError, ValueError) as error:
            self.broadcast(str(error))
            raise
        self.broadcast(None)
        return directory


class ReadOnlyRunDirectory(RunDirectory):
    """The directory of a run that another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: dict[str, Any]) -> None:
        """Do nothing."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def join_processes(options: Options) -> Iterator[tuple[Processes, Options]]:
    """Join the processes that ``torchrun`` has started, if it has; gives the options with this process's own device.

    Raises:
        ValueError: ``--device`` names one GPU for all.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(), options
        return
    device = torch.device(options.device)
    if device.type == "cuda":
        if device.index is not None:
            raise ValueError(f"every process takes a GPU of its own; pass --device cuda, not {options.device}")
        options = replace(options, device=f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(torch.device(options.device))
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Processes(), options
    finally:
        distributed.destroy_process_group()
