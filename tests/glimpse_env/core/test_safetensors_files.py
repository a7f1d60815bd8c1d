"""Tensors and their JSON in one file."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from glimpse_env.core.safetensors_files import (
    DeferredWeights,
    FileFormatError,
    init_empty_weights,
    load_weights,
    read_tensors,
    write_tensors,
)

METADATA = {"format": "test-1", "sizes": {"rows": 3, "names": ["a", "é"]}, "none": None}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 4, generator=generator)
    return {"table": table, "turned": table.T, "scalar": torch.tensor(0.5), "empty": torch.empty(0)}


def test_tensors_are_read_as_written_in_half_precision(tmp_path, tensors):
    path = tmp_path / "new" / "weights.safetensors"
    write_tensors(path, tensors, METADATA)
    read, metadata = read_tensors(path, "test-1")
    assert metadata == METADATA
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == torch.float32
        assert torch.equal(read[name], tensor.half().float())
    with safe_open(path, framework="pt") as file:  # any reader of safetensors reads it
        assert file.get_tensor("table").dtype == torch.float16
        assert json.loads(file.metadata()["sizes"]) == METADATA["sizes"]


def test_a_failed_write_leaves_the_old_file(tmp_path, tensors):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, tensors, METADATA)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_tensors(path, tensors, {"format": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [7e4, float("nan")])
def test_what_half_precision_cannot_hold_is_not_written(tmp_path, tensors, number):
    write_tensors(tmp_path / "w.safetensors", tensors, METADATA)
    before = (tmp_path / "w.safetensors").read_bytes()
    with pytest.raises(FloatingPointError, match=r"'scalar' holds numbers that are not finite .* not written"):
        write_tensors(tmp_path / "w.safetensors", {**tensors, "scalar": torch.tensor(number)}, METADATA)
    assert (tmp_path / "w.safetensors").read_bytes() == before


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights file '.*nothing\.safetensors'"):
        read_tensors(tmp_path / "nothing.safetensors", "test-1")


def test_every_cut_of_a_file_is_found(tmp_path, tensors):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, tensors, METADATA)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=r"weights\.safetensors"):
            read_tensors(path, "test-1")
    path.write_bytes(content)
    read_tensors(path, "test-1")


@pytest.mark.parametrize("content", [b"\0" * 100, b"{}" * 50, b"\xff" * 1000, b"\x02" + b"\0" * 7 + b"[]"])
def test_garbage_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="is not a whole safetensors file"):
        read_tensors(path, "test-1")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_is_refused_and_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(FileFormatError):
        read_tensors(path, "test-1")
    torch.save({"weights": torch.ones(3), "trap": Trap(sprung)}, path)
    with pytest.raises(FileFormatError):
        read_tensors(path, "test-1")
    assert not sprung.exists()


@pytest.mark.parametrize("metadata", [None, {"framework": '"torch"'}, {"format": '"test-2"'}])
def test_a_file_of_another_kind_is_refused(tmp_path, tensors, metadata):
    path = tmp_path / "weights.safetensors"
    save_file({"table": tensors["table"]}, path, metadata)
    with pytest.raises(FileFormatError, match="expected 'test-1'"):
        read_tensors(path, "test-1")


def test_a_foreign_file_whose_metadata_is_not_json_is_refused(tmp_path, tensors):
    path = tmp_path / "weights.safetensors"
    save_file({"table": tensors["table"]}, path, {"format": "pt"})
    with pytest.raises(FileFormatError, match=r"weights\.safetensors"):
        read_tensors(path, "test-1")


def test_weights_are_loaded(tmp_path):
    module, source = nn.Linear(3, 2), nn.Linear(3, 2)
    load_weights(tmp_path, module, source.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), source.parameters(), strict=True))


@pytest.mark.parametrize("change", ["shape", "missing", "extra"])
def test_weights_that_do_not_fit_name_the_file(tmp_path, change):
    tensors = nn.Linear(3, 2).state_dict()
    if change == "shape":
        tensors["weight"] = torch.zeros(2, 4)
    elif change == "missing":
        del tensors["bias"]
    else:
        tensors["more"] = torch.zeros(1)
    with pytest.raises(FileFormatError, match=r"agent\.safetensors.*do not fit"):
        load_weights(tmp_path / "agent.safetensors", nn.Linear(3, 2), tensors)


WRITE = """
import sys, torch
from pathlib import Path
from glimpse_env.core.safetensors_files import write_tensors
tensors = {name: torch.arange(3.0) for name in ("b", "a", "é")}
write_tensors(Path(sys.argv[1]), tensors, {"format": "test-1", "z": [1], "a": "é", "m": {"x": 1.5}, "k": 0})
"""


def test_equal_tensors_make_equal_files_in_every_process(tmp_path):
    for name in "abc":
        subprocess.run([sys.executable, "-c", WRITE, str(tmp_path / name)], check=True)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1
    tensors, metadata = read_tensors(tmp_path / "a", "test-1")
    assert sorted(tensors) == ["a", "b", "é"]
    assert metadata == {"format": "test-1", "z": [1], "a": "é", "m": {"x": 1.5}, "k": 0}


def test_modules_without_memory_take_the_tensors_themselves(tmp_path):
    state = torch.get_rng_state()
    with init_empty_weights():
        module = nn.Sequential(nn.Embedding(10**9, 10**6), nn.Linear(3, 2), nn.LSTMCell(2, 2), nn.LayerNorm(4))
    assert all(parameter.is_meta for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    linear, tensors = module[1], nn.Linear(3, 2).state_dict()
    load_weights(tmp_path, linear, tensors)
    assert linear.weight.data_ptr() == tensors["weight"].data_ptr()
    assert linear.weight.requires_grad
    assert linear(torch.ones(1, 3)).shape == (1, 2)


def test_deferred_weights_are_named_as_in_the_module(tmp_path):
    module = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.BatchNorm1d(2)))
    module[1][0].num_batches_tracked += 3
    tensors = {name: tensor.float() for name, tensor in module.state_dict().items()}
    deferred = DeferredWeights(tmp_path / "file", tensors)
    assert deferred.state_dict().keys() == tensors.keys()
    target = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.BatchNorm1d(2)))
    deferred.load_into(target)
    assert all(torch.equal(weight, target.state_dict()[name]) for name, weight in module.state_dict().items())
    assert target[1][0].num_batches_tracked.dtype == torch.int64
    assert not any(parameter.requires_grad for parameter in target.parameters())
    with pytest.raises(FileFormatError, match=r"file'.*do not fit"):
        deferred.load_into(nn.Linear(3, 2))
