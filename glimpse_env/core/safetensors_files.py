"""Weights on disk: safetensors with JSON beside the tensors, written whole or not at all.

Knows files and modules. It does not know what the weights are for; captioners and agents both keep theirs this way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glimpse_env.core.atomic_files import atomic_path

Config = TypeVar("Config")

# What the JSON of a stranger's file raises: broken, of numbers with thousands of digits, or nested too deeply.
_UNREADABLE = (SafetensorError, ValueError, RecursionError)


class FileFormatError(ValueError):
    """A weights file is cut off, damaged, or not what its reader expects: the message names the file and the cure."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write half-precision ``tensors`` with JSON ``metadata`` as one safetensors file, whole or not at all.

    Equal tensors and metadata make equal files, to the byte.

    Raises:
        FloatingPointError: a number is not finite in half precision, which ends at 65,504; nothing was written.
    """
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    for name, half in halves.items():
        if not torch.isfinite(half).all():
            raise FloatingPointError(
                f"{name!r} holds numbers that are not finite in half precision; {path} was not written; "
                "train with a lower learning rate"
            )
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
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{str(path)!r} is not a whole safetensors file of this project ({error}); fetch or train it again"
    )


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``write_tensors``: float32 tensors and metadata.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is cut off, not safetensors, of another format, or holds numbers that are not finite.
    """
    metadata = read_metadata(path)
    if metadata.get("format") != expected_format:
        raise FileFormatError(
            f"{str(path)!r} holds format {metadata.get('format')!r}, expected {expected_format!r}; "
            "is it a file of another kind or version?"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: _real(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except _UNREADABLE as error:
        raise _damaged(path, error) from error
    return tensors, metadata


def _real(name: str, tensor: Tensor) -> Tensor:
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
        raise ValueError(f"{name!r} holds {tensor.dtype}, not real numbers")
    if not tensor.isfinite().all():
        raise ValueError(f"{name!r} holds numbers that are not finite")
    return tensor.to(torch.float32, copy=True)  # in aligned memory, also what the file holds in that precision


def read_notes(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The remarks in the ``metadata`` of the file ``path``; none where it holds none.

    Raises:
        FileFormatError: they are not a JSON object.
    """
    notes = metadata.get("notes", {})
    if not isinstance(notes, dict):
        raise FileFormatError(f"{str(path)!r}: its notes are {notes!r}, expected a JSON object; fetch the file again")
    return notes


def read_config(kind: type[Config], held: object) -> Config:
    """A configuration of a file's metadata as the dataclass ``kind`` of whole numbers, shares, words and pairs.

    Args:
        kind: the dataclass.
        held: what JSON gave.

    Raises:
        ValueError: a field is missing, too much or of another type, or a size is not positive.
    """
    types = get_type_hints(kind)
    if not isinstance(held, dict):
        raise ValueError(f"{kind.__name__} is {held!r}, expected a JSON object")
    for name, value in held.items():
        if name not in types:
            raise ValueError(f"{kind.__name__} has no field {name!r}")
        if not _fits(value, types[name]):
            raise ValueError(f"{kind.__name__}.{name} is {value!r}, expected {_described(types[name])}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in held.items()}
    try:
        return kind(**given)
    except TypeError:
        missing = [field.name for field in fields(kind) if field.name not in held]  # type: ignore[arg-type]
        raise ValueError(f"{kind.__name__} lacks one of {', '.join(missing)}") from None


def _fits(value: object, expected: Any) -> bool:
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    if get_origin(expected) is tuple:
        return isinstance(value, list) and len(value) == len(get_args(expected)) and all(map(_is_size, value))
    if expected is int:
        return _is_size(value)
    if expected is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and 0 <= value < 1
    return isinstance(value, expected)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _described(expected: Any) -> str:
    if get_origin(expected) is Literal:
        return " or ".join(map(repr, get_args(expected)))
    if get_origin(expected) is tuple:
        return f"{len(get_args(expected))} positive integers"
    return {int: "a positive integer", float: "a share in [0, 1)", bool: "true or false"}.get(expected, "a string")


def check_fit(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """See that ``tensors`` of the file ``path`` have the names and shapes of a module's weights.

    Raises:
        FileFormatError: they have not.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        is_there = f"{name!r} of shape {found[name]}" if name in found else f"no {name!r}"
        should = f"expected shape {expected[name]}" if name in expected else "expected none"
        raise FileFormatError(
            f"{str(path)!r}: the weights do not fit the configuration beside them: there is {is_there}, {should}"
        )


class KeptWeights(nn.Module):
    """Weights of a file for a module that is not built yet: named, moved, saved and told apart as the module's own.

    Args:
        path: the file, which errors name.
        tensors: by the names that the module gives them.

    Raises:
        KeyError: two names cannot be of one module.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._path = path
        for name, tensor in tensors.items():
            owner: nn.Module = self
            *parts, last = name.split(".")
            for part in parts:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, tensor)

    def give(self, module: nn.Module) -> None:
        """Let ``module`` have the weights, frozen.

        Raises:
            FileFormatError: names or shapes are not the module's.
        """
        load_weights(self._path, module.requires_grad_(False), self.state_dict())


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules made meanwhile have sizes, but no memory for their weights, which wait for ``load_weights``."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Keeps modules from drawing a start: where there is no memory, torch would load its compiler for that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def load_weights(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let ``tensors`` of the file ``path`` be the weights of ``module``, in place of those that it has.

    Raises:
        FileFormatError: names or shapes are not the module's.
    """
    check_fit(path, module, tensors)
    own = module.state_dict()
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}, assign=True)
