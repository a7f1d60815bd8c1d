"""The folder of a training run: its options, metrics and checkpoints, which survive a kill or a full disk."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter

from glimpse_env.core.atomic_files import atomic_path, remove_stale
from train.common.formatting import jsonable, write_json
from train.common.options import CommonOptions

# Exceptions of torch.load for a file whose bytes have changed.
_DAMAGED: tuple[type[Exception], ...] = (RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError)
_DAMAGED += (AttributeError, ArithmeticError, AssertionError, MemoryError, struct.error, pickle.UnpicklingError)


def lock_folder(path: Path) -> AcquireReturnProxy:
    """Lock a run's folder, created if it is missing, until this process ends, however it ends.

    Raises:
        FileExistsError: another process has locked it.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path / ".lock").acquire(blocking=False)
    except Timeout as error:
        raise FileExistsError(
            f"another process is at work in {str(path)!r}; wait for it, or choose another --run-dir"
        ) from error


def fixed_config(options: CommonOptions, started: Path | None = None, kind: str = "run") -> dict[str, Any]:
    """The options that a resumed run may not change, ready for JSON; ``kind`` is what the error message calls the run.

    Raises:
        ValueError: according to the file ``started``, the run was started with other options.
    """
    config = {name: value for name, value in jsonable(options).items() if name not in options.MAY_CHANGE}
    before = config if started is None else read_config(started)
    for name in sorted(config):
        if before.get(name) != config[name]:
            raise ValueError(
                f"the {kind} in {str(started and started.parent)!r} was started with {name}={before.get(name)!r}, not "
                f"{config[name]!r}; resume with the same options, or choose another --run-dir"
            )
    return config


class RunDirectory:
    """The folder of one training run: ``config.json``, ``metrics.csv``, TensorBoard events and ``checkpoint.pt``.

    Args:
        path: the folder.
        options: the command's options, written to ``config.json``, but for those of ``MAY_CHANGE``.
        resume: whether to resume the run in the folder.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is not set, or another process has locked it.
        FileNotFoundError: ``resume`` is set and the folder holds no checkpoint.
        ValueError: the run in the folder was started with other options.

    Attributes:
        listeners: called with the step and the metrics of every row that any run of this process logs.
    """

    listeners: ClassVar[list[Callable[[int, dict[str, float]], None]]] = []

    def __init__(self, path: Path, options: CommonOptions, resume: bool) -> None:
        self.path = path
        if resume and not self._checkpoint.is_file():
            raise FileNotFoundError(f"nothing to resume in {str(path)!r}: no checkpoint.pt; start without --resume")
        self._lock = lock_folder(path).lock
        try:
            self._open(options, resume)
        except BaseException:
            self._lock.release()
            raise
        remove_stale(path)
        self._tensorboard = SummaryWriter(str(path))

    def _open(self, options: CommonOptions, resume: bool) -> None:
        path = self.path
        config = fixed_config(options, path / "config.json" if resume else None)
        if not resume:
            if self._checkpoint.exists():
                raise FileExistsError(
                    f"{str(path)!r} holds a run already; go on with --resume, or choose another --run-dir"
                )
            if (path / "config.json").exists():  # of a run that ended before its first checkpoint
                for pattern in ("metrics.csv", "events.out.tfevents.*", *options.WEIGHTS_FILES):
                    for file in path.glob(pattern):
                        file.unlink()
            write_json(path / "config.json", config)

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint atomically: ``state`` and the state of the global generators.

        Raises:
            OSError: it could not be written; the previous one is unchanged.
        """
        kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
        randomness = {
            "python": random.getstate(),
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        buffer = io.BytesIO()  # torch.save to a file has no readable error for a full disk
        torch.save({**state, "randomness": randomness}, buffer)
        try:
            with atomic_path(self._checkpoint) as partial:
                partial.write_bytes(buffer.getbuffer())
        except OSError as error:
            last = f"the last good one stays in {str(self._checkpoint)!r}" if self._checkpoint.exists() else "none yet"
            reason = os.strerror(error.errno) if error.errno else error
            raise OSError(f"a checkpoint could not be written ({reason}); {last}; make room and --resume") from error

    def restore(self) -> dict[str, Any]:
        """Read the checkpoint and set the global generators to their saved states.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            _set_generators(state.pop("randomness"))
        except _DAMAGED as error:
            problem = f"checkpoint {str(self._checkpoint)!r} is damaged ({error!r}); start the run again"
            raise ValueError(problem) from error
        return state

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a row of ``metrics`` to ``metrics.csv`` and to TensorBoard.

        Rows of this step or later, from before the run was resumed at an earlier checkpoint, are dropped first.
        """
        path = self.path / "metrics.csv"
        before = csv.DictReader(path.open(newline="")) if path.exists() else ()
        rows = [row for row in before if int(row["step"]) < step]
        rows.append({"step": str(step), **{name: f"{value:.6g}" for name, value in metrics.items()}})
        fields = list(dict.fromkeys(name for row in rows for name in row))
        with atomic_path(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, restval="")
            writer.writeheader()
            writer.writerows(rows)
        for name, value in metrics.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()
        for listener in self.listeners:
            listener(step, metrics)

    def close(self) -> None:
        """Close the TensorBoard file and release the folder."""
        self._tensorboard.close()
        self._lock.release()


def read_config(path: Path) -> dict[str, Any]:
    """Read the options that a run was started with.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is missing or damaged ({error}); start the run again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{str(path)!r} is damaged: it holds no options; start the run again")
    return config


def _set_generators(randomness: dict[str, Any]) -> None:
    random.setstate(randomness["python"])
    kind, keys, *rest = randomness["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(randomness["torch"])
    if randomness["cuda"]:
        torch.cuda.set_rng_state_all(randomness["cuda"])
