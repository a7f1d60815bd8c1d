"""Files that are there whole or not at all.

Knows paths. It does not know what is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to in place of ``path``, which takes its place when the block ends without an exception.

    The folder is made when missing. After an exception ``path`` is as it was, and what was written is gone.

    Args:
        path: the file to make or to replace.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder, path.name)
        yield partial
        partial.replace(path)
