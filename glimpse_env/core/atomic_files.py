"""Atomic writes: a file is complete or absent, even when the process is killed or the machine loses power."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces ``path`` when the block ends without an exception.

    Missing folders are made. After an exception ``path`` is unchanged and the temporary file is removed. The file is
    flushed to disk before it replaces ``path``.

    Raises:
        OSError: the file cannot be written; when the disk is full, the message says so and names the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=_SUFFIX) as folder:
            partial = Path(folder, path.name)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"{os.strerror(error.errno)}: make room and go on; what was there before is as it was"
        raise OSError(error.errno, message, str(path)) from error


def remove_stale(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left in a folder of files of a ``name``, a pattern; none may write there now."""
    for stale in folder.glob(f".{name}.*{_SUFFIX}"):
        shutil.rmtree(stale, ignore_errors=True)
