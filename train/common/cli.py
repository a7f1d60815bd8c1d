"""How every command begins and ends: options from the command line, and a sentence about what its user can mend.

Knows exceptions and exit statuses. It does not know what a command does.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from gymnasium.error import Error

Options = TypeVar("Options")
TOLD = (ValueError, OSError, ImportError, FloatingPointError, Error)  # what docstrings announce
HERE = Path(__file__).parents[2]
PACKAGES = tuple(str(HERE / name) + os.sep for name in ("glimpse_env", "agents", "train"))
INTERRUPTED = 130  # the status of a shell whose command was ended by Ctrl-C


def run_command(
    main: Callable[[Options], int | None], options: type[Options], arguments: Sequence[str] | None = None
) -> None:
    """Run a command and exit: with its status, or with a sentence where its user has asked for what cannot be.

    Exceptions that nobody has announced keep their traceback, and with ``$GLIMPSE_TRACEBACK`` set all do.

    Args:
        main: the command; its value is the exit status, None for 0.
        options: a dataclass, which ``tyro`` reads from the command line.
        arguments: the command line; by default the process's own.

    Raises:
        SystemExit: always; 1 after an error, 130 after Ctrl-C.
    """
    try:
        status = main(tyro.cli(options, prog=program(main), args=arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except TOLD as error:
        if os.environ.get("GLIMPSE_TRACEBACK") or not announced(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 1
    raise SystemExit(status or 0)


def program(main: Callable[..., Any]) -> str:
    """How a command is called, such as ``python -m train.sb3``, for its help text."""
    module = main.__module__
    if module == "__main__" and (spec := sys.modules["__main__"].__spec__) is not None:
        module = spec.name
    return "python -m " + ".".join(module.split(".")[:2])


def announced(error: BaseException) -> bool:
    """Whether an exception tells its user what to mend: the system's own, and those that were raised by these packages.

    One of the same type from within a library says that it was called wrongly, which is for whoever wrote the call.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(PACKAGES)
