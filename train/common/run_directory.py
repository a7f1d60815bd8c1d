"""What every command shares: seeds, threads, a run directory with its metrics, and checkpoints that survive accidents.

Knows files and randomness. It does not know models, agents or environments.
"""

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

from glimpse_env.core.atomic_files import atomic_path, sweep
from train.common.formatting import jsonable, write_json

# What torch's reader of checkpoints raises for one whose bytes are not as they were written.
_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
)


def claim(path: Path) -> AcquireReturnProxy:
    """Keep a run's folder, made if it is not there, for this process until the lock is released.

    The system releases it when the process ends, however it ends.

    Raises:
        FileExistsError: another process is at work there.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path / ".lock").acquire(blocking=False)
    except Timeout as error:
        raise FileExistsError(
            f"another process is at work in {str(path)!r}; wait for it, or choose another --run-dir"
        ) from error


LEFT = ("metrics.csv", "events.out.tfevents.*", "attention.safetensors", "captioner.safetensors", "policy.safetensors")
UNLIKE = ("resume", "threads", "run_dir", "checkpoint_minutes", "runners", "learners", "address")  # where and how


class RunDirectory:
    """The folder of one training run: ``config.json``, ``metrics.csv``, TensorBoard events and ``checkpoint.pt``.

    Args:
        path: the folder.
        options: the command's options, written to ``config.json``.
        resume: whether to go on with the run that lies there.

    Raises:
        FileExistsError: a run lies there and ``resume`` was not asked for, or another process is at work there.
        FileNotFoundError: ``resume`` was asked for and no checkpoint lies there.
        ValueError: the run that lies there was started with other options.

    Attributes:
        listeners: called with the step and the metrics of every row that is logged, by any run of this process.
    """

    listeners: ClassVar[list[Callable[[int, dict[str, float]], None]]] = []

    def __init__(self, path: Path, options: Any, resume: bool) -> None:
        self.path = path
        if resume and not self._checkpoint.is_file():
            raise FileNotFoundError(f"nothing to resume in {str(path)!r}: no checkpoint.pt; start without --resume")
        self._lock = claim(path).lock
        try:
            self._open(options, resume)
        except BaseException:
            self._lock.release()
            raise
        sweep(path)
        self._board = SummaryWriter(str(path))

    def _open(self, options: Any, resume: bool) -> None:
        path = self.path
        config = {name: value for name, value in jsonable(options).items() if name not in UNLIKE}
        if resume:
            before = read_config(path / "config.json")
            changed = sorted(name for name in config if before.get(name) != config[name])
            if changed:
                name = changed[0]
                raise ValueError(
                    f"the run in {str(path)!r} was started with {name}={before.get(name)!r}, not {config[name]!r}; "
                    "resume with the same options, or choose another --run-dir"
                )
        else:
            if self._checkpoint.exists():
                raise FileExistsError(
                    f"{str(path)!r} holds a run already; go on with --resume, or choose another --run-dir"
                )
            if (path / "config.json").exists():  # of a run that ended before its first checkpoint
                for left in LEFT:
                    for file in path.glob(left):
                        file.unlink()
            write_json(path / "config.json", config)

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint atomically: ``state`` and the state of the global generators.

        Raises:
            OSError: it could not be written; the last one is as it was.
        """
        kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
        randomness = {
            "python": random.getstate(),
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        written = io.BytesIO()  # torch says nothing of a full disk that one could understand
        torch.save({**state, "randomness": randomness}, written)
        try:
            with atomic_path(self._checkpoint) as partial:
                partial.write_bytes(written.getbuffer())
        except OSError as error:
            kept = f"the last good one stays in {str(self._checkpoint)!r}" if self._checkpoint.exists() else "none yet"
            why = os.strerror(error.errno) if error.errno else error
            raise OSError(f"a checkpoint could not be written ({why}); {kept}; make room and --resume") from error

    def restore(self) -> dict[str, Any]:
        """Read the checkpoint and set the generators as they were.

        Raises:
            ValueError: the checkpoint is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            _set_generators(state.pop("randomness"))
        except _DAMAGED as error:
            raise ValueError(
                f"checkpoint {str(self._checkpoint)!r} is damaged ({error!r}); start the run again"
            ) from error
        return state

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a row of ``metrics`` to ``metrics.csv`` and to TensorBoard.

        Rows of this step or later, left by a run that was resumed at an earlier checkpoint, are dropped first.
        """
        path = self.path / "metrics.csv"
        rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        rows = [row for row in rows if int(row["step"]) < step]
        rows.append({"step": str(step), **{name: f"{value:.6g}" for name, value in metrics.items()}})
        fields = list(dict.fromkeys(name for row in rows for name in row))
        with atomic_path(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, restval="")
            writer.writeheader()
            writer.writerows(rows)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        for listener in self.listeners:
            listener(step, metrics)

    def close(self) -> None:
        """Close the TensorBoard file and let others work here."""
        self._board.close()
        self._lock.release()


def read_config(path: Path) -> dict[str, Any]:
    """The options that a run was started with.

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
