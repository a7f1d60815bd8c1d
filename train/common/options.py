"""The options that all commands share, and checks of options."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import tyro

from glimpse_env.datasets import WORLDS

DatasetName = Annotated[str, tyro.conf.arg(metavar="{" + ",".join(WORLDS) + "}")]


@dataclass
class CommonOptions:
    """What a command computes with.

    Attributes:
        MAY_CHANGE: options that a resumed run may change, for they say where and how it runs, not what it computes.
        WEIGHTS_FILES: names of the weights files that the command writes into its run directory.
    """

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("resume", "threads", "run_dir", "checkpoint_minutes")
    WEIGHTS_FILES: ClassVar[tuple[str, ...]] = ()

    seed: int = 0
    """Seed of every generator."""
    device: str = "cpu"
    """Torch device, such as cpu or cuda."""
    threads: int = 0
    """CPU threads for torch; 0 leaves torch's choice."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Use only the first N images, for a quick try."""
    data_root: Path | None = None
    """Folder the dataset lies in; else $GLIMPSE_DATA/<dataset>. Shapes needs none."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2^63, got {self.seed}")
        if self.threads < 0:
            raise ValueError(f"threads must be at least 0, got {self.threads}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 image, got {self.limit}")


def prepare(options: CommonOptions) -> None:
    """Seed Python, NumPy and torch, and set the number of threads."""
    random.seed(options.seed)
    np.random.seed(options.seed % 2**32)
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)


def check_learning_rate(rate: float | None) -> None:
    """Refuse a learning rate of 0 or below. One that is too large shows in the weights it leads to."""
    if rate is None or not rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {rate}")


def check_writable(path: Path, option: str, folder: bool = False) -> None:
    """Check, before the work, that the file or folder that ``option`` names can be written; neither is created.

    Raises:
        OSError: it cannot be written.
    """
    if folder and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{option} {str(path)!r} is a file; name a folder")
    if not folder and path.is_dir():
        raise IsADirectoryError(f"{option} {str(path)!r} is a folder; name a file in it")
    parent = path if folder else path.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise PermissionError(
            f"{option} {str(path)!r} cannot be written: {parent} takes no files ({error.strerror}); name another place"
        ) from error


def product_dtype(precision: str, device: str) -> torch.dtype:
    """The type in which matrices are multiplied; ``auto`` is bfloat16 where the device multiplies it natively."""
    if precision == "auto":
        cuda = torch.device(device).type == "cuda"
        native = torch.cuda.is_bf16_supported() if cuda else torch.cpu._is_avx512_bf16_supported()
        precision = "bfloat16" if native else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(precision: str, device: str) -> torch.autocast:
    """A block whose products are computed in ``product_dtype``."""
    enabled = product_dtype(precision, device) == torch.bfloat16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)
