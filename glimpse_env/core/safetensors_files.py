"""Weights files of captioners and agents: tensors and JSON metadata in one safetensors file, written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from glimpse_env.core.atomic_files import atomic_path

Config = TypeVar("Config")

# Raised by damaged files, and by JSON with numbers of thousands of digits or nested too deeply.
_UNREADABLE = (SafetensorError, ValueError, RecursionError)


class FileFormatError(ValueError):
    """A weights file is truncated, damaged, or of another format; the message names the file and what to do."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` in half precision and JSON ``metadata`` as one safetensors file, atomically.

    Equal tensors and metadata give identical files.

    Raises:
        FloatingPointError: a number is not finite in half precision, whose largest is 65,504; nothing is written.
    """
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in tensors.items()}
    for name, half in halves.items():
        if not torch.isfinite(half).all():
            raise FloatingPointError(
                f"{name!r} holds numbers that are not finite in half precision; {path} was not written; "
                "train with a lower learning rate"
            )
    content = save(halves, {key: json.dumps(value) for key, value in metadata.items()})
    with atomic_path(path) as partial:
        partial.write_bytes(_with_sorted_metadata(content))


def _with_sorted_metadata(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted; the library's order changes from process to process."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at a multiple of eight bytes
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + size :]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file of ``write_tensors``, whatever its format.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is truncated, or not safetensors.
    """
    with _open(path) as file:
        return _metadata(file)


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileFormatError:
        raise
    except _UNREADABLE as error:
        raise FileFormatError(
            f"{str(path)!r} is not a whole safetensors file of this project ({error}); fetch or train it again"
        ) from error


def _metadata(file: Any) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}


def read_tensors(path: Path, *formats: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ``write_tensors`` of one of these ``formats``: tensors as float32, and metadata.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: the file is truncated, not safetensors, of another format, or has numbers that are not finite.
    """
    with _open(path) as file:
        metadata = _metadata(file)
        if metadata.get("format") not in formats:
            raise FileFormatError(
                f"{str(path)!r} holds format {metadata.get('format')!r}, expected {' or '.join(map(repr, formats))}; "
                "is it a file of another kind or version?"
            )
        return {name: _as_float32(name, file.get_tensor(name)) for name in file.keys()}, metadata  # noqa: SIM118


def _as_float32(name: str, tensor: Tensor) -> Tensor:
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
        raise ValueError(f"{name!r} holds {tensor.dtype}, not real numbers")
    if not tensor.isfinite().all():
        raise ValueError(f"{name!r} holds numbers that are not finite")
    return tensor.to(torch.float32, copy=True)  # always a copy: tensors of a file may not be aligned


def read_config(kind: type[Config], values: object) -> Config:
    """A configuration in a file's metadata as the dataclass ``kind``.

    Its fields are positive integers, shares in [0, 1), strings, literals and tuples of positive integers.

    Raises:
        ValueError: a field is missing, unknown or of another type or range.
    """
    types = get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} is {values!r}, expected a JSON object")
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"{kind.__name__} has no field {name!r}")
        if not _fits(value, types[name]):
            raise ValueError(f"{kind.__name__}.{name} is {value!r}, expected {_described(types[name])}")
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return kind(**arguments)
    except TypeError:
        missing = [field.name for field in fields(kind) if field.name not in values]  # type: ignore[arg-type]
        raise ValueError(f"{kind.__name__} lacks one of {', '.join(missing)}") from None


def _fits(value: object, expected: Any) -> bool:
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    if get_origin(expected) is UnionType:
        return any(_fits(value, alternative) for alternative in get_args(expected))
    if get_origin(expected) is tuple:
        lengths = range(1, 4) if Ellipsis in get_args(expected) else (len(get_args(expected)),)
        return isinstance(value, list) and len(value) in lengths and all(map(_is_size, value))
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
    if get_origin(expected) is UnionType:
        return " or ".join(map(_described, get_args(expected)))
    if get_origin(expected) is tuple:
        return f"{'one to three' if Ellipsis in get_args(expected) else len(get_args(expected))} positive integers"
    return {int: "a positive integer", float: "a share in [0, 1)", bool: "true or false"}.get(expected, "a string")


def load_weights(path: Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the weights of ``module`` by ``tensors`` of the file ``path``.

    Raises:
        FileFormatError: names or shapes are not the module's.
    """
    current = module.state_dict()
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in current.items()}
    if wrong := actual.items() ^ expected.items():
        name, _ = min(wrong)
        stored = f"{name!r} of shape {actual[name]}" if name in actual else f"no {name!r}"
        required = f"expected shape {expected[name]}" if name in expected else "expected none"
        raise FileFormatError(
            f"{str(path)!r}: the weights do not fit the configuration beside them: there is {stored}, {required}"
        )
    module.load_state_dict({name: tensor.to(current[name].dtype) for name, tensor in tensors.items()}, assign=True)


class DeferredWeights(nn.Module):
    """Weights from the file ``path`` for a module that is built later, with its state dict and its moves.

    Raises:
        KeyError: two names cannot be of one module.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._path = path
        for name, tensor in tensors.items():
            owner: nn.Module = self
            *parents, leaf = name.split(".")
            for parent in parents:
                if parent not in owner._modules:
                    owner.add_module(parent, nn.Module())
                owner = owner.get_submodule(parent)
            owner.register_buffer(leaf, tensor)

    def load_into(self, module: nn.Module) -> None:
        """Load the weights into ``module`` as ``load_weights`` does, and freeze it."""
        load_weights(self._path, module.requires_grad_(False), self.state_dict())


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Build modules without memory for their weights, to be filled by ``load_weights``."""
    with torch.device("meta"), _SkipInit():
        yield


class _SkipInit(TorchFunctionMode):
    """Skips weight initialisation, for which torch would load its compiler on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))
