"""The start and the end of every command: options from the command line, exit status, error messages for its user."""

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
INTERRUPTED = 130  # exit status of a shell whose command was ended by Ctrl-C
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, Error)
_SOURCES = Path(__file__).parents[2]
_PACKAGES = tuple(str(_SOURCES / name) + os.sep for name in ("glimpse_env", "agents", "train"))


def run_command(
    main: Callable[[Options], int | None], options: type[Options], arguments: Sequence[str] | None = None
) -> None:
    """Run a command and exit with its status (None is 0), or with a message for an error that its user can mend.

    All other exceptions keep their traceback; with ``$GLIMPSE_TRACEBACK`` set, user errors do, too. ``tyro`` reads the
    dataclass ``options`` from ``arguments``, by default the process's.

    Raises:
        SystemExit: always; 1 after an error, 130 after Ctrl-C.
    """
    try:
        status = main(tyro.cli(options, prog=_program(main), args=arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except _USER_ERRORS as error:
        if os.environ.get("GLIMPSE_TRACEBACK") or not is_user_error(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        status = 1
    raise SystemExit(status or 0)


def _program(main: Callable[..., Any]) -> str:
    """The name of a command in its help text, such as ``python -m train.sb3``."""
    module = main.__module__
    if module == "__main__" and (spec := sys.modules["__main__"].__spec__) is not None:
        module = spec.name
    return "python -m " + ".".join(module.split(".")[:2])


def is_user_error(error: BaseException) -> bool:
    """Whether the user can mend an error: the operating system or these packages have raised it.

    An exception of the same type from within a library is a bug in the calling code.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGES)
