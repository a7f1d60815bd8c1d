"""Files that are there whole or not at all, whatever happens to the process or the machine.

Knows paths. It does not know what is written.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to in place of ``path``, which takes its place when the block ends without an exception.

    The folder is made when missing. After an exception ``path`` is as it was, and what was written is gone. What was
    written is on the disk before it takes its place, so that no power cut leaves an empty file there.

    Args:
        path: the file to make or to replace.

    Raises:
        OSError: it cannot be written; where the disk is full, it says so and names the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL) as folder:
            partial = Path(folder, path.name)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        told = f"{os.strerror(error.errno)}: make room and go on; what was there before is as it was"
        raise OSError(error.errno, told, str(path)) from error


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what processes that were killed had half written in place of files of a folder.

    Args:
        folder: nobody writes there meanwhile.
        name: of the files, a pattern.
    """
    for left in folder.glob(f".{name}.*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
