"""Weights on disk: safetensors with JSON beside the tensors, written whole or not at all.

Knows files and modules. It does not know what the weights are for; captioners and agents both keep theirs this way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from glimpse_env.files import atomic_path


class FileFormatError(ValueError):
    """A weights file is cut off, damaged, or not what its reader expects: the message names the file and the cure."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write half-precision ``tensors`` with JSON ``metadata`` as one safetensors file, whole or not at all.

    Equal tensors and metadata make equal files, to the byte.
    """
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    written = save(halves, {key: json.dumps(value) for key, value in metadata.items()})
    with atomic_path(path) as partial:
        partial.write_bytes(_in_order(written))


def _in_order(written: bytes) -> bytes:
    """A safetensors file with its metadata sorted; the library's order changes from process to process."""
    size = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    ordered += b" " * (-len(ordered) % 8)  # tensors begin at a multiple of eight bytes
    return len(ordered).to_bytes(8, "little") + ordered + written[8 + size :]


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON beside the tensors of a file of ``write_tensors``, whatever its format.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is cut off, or not safetensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{str(path)!r} is not a whole safetensors file of this project ({error}); fetch or train it again"
    )


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``write_tensors``: float32 tensors and metadata.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is cut off, not safetensors, or of another format.
    """
    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise _damaged(path, error) from error
    if metadata.get("format") != expected_format:
        raise FileFormatError(
            f"{str(path)!r} holds format {metadata.get('format')!r}, expected {expected_format!r}; "
            "is it a file of another kind or version?"
        )
    return tensors, metadata


def load_weights(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put ``tensors`` of the file ``path`` into ``module``.

    Raises:
        FileFormatError: names or shapes are not the module's.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise FileFormatError(
            f"{str(path)!r}: the weights do not fit the configuration beside them: {error}"
        ) from error
