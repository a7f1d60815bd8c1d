"""The options that all commands share, and checks of options."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro


@dataclass
class Compute:
    """What a command computes with."""

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
        """Refuse what no command can do."""
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be at least 0 and below 2^63, got {self.seed}")
        if self.threads < 0:
            raise ValueError(f"threads must be at least 0, got {self.threads}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 image, got {self.limit}")


def prepare(options: Compute) -> None:
    """Seed Python, NumPy and torch, and set the number of threads."""
    random.seed(options.seed)
    np.random.seed(options.seed % 2**32)
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)


def check_learning_rate(rate: float | None) -> None:
    """Refuse what nothing is learned with. A rate that is too large is seen by what becomes of the weights.

    Raises:
        ValueError: it is not above 0.
    """
    if rate is None or not rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {rate}")


def check_writable(path: Path, option: str, folder: bool = False) -> None:
    """See, before the work, that a file or a folder can be written; neither is made.

    Args:
        path: of the file or the folder.
        option: of the command that named it.
        folder: whether it is a folder.

    Raises:
        OSError: it cannot.
    """
    if folder and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{option} {str(path)!r} is a file; name a folder")
    if not folder and path.is_dir():
        raise IsADirectoryError(f"{option} {str(path)!r} is a folder; name a file in it")
    place = path if folder else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise PermissionError(
            f"{option} {str(path)!r} cannot be written: {place} takes no files ({error.strerror}); name another place"
        ) from error


def native_bfloat16(device: str) -> bool:
    """Whether the processor multiplies bfloat16 natively."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported())
