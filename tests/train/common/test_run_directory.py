"""Seeds, run directories and checkpoints."""

from __future__ import annotations

import csv
import json
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from train.common.formatting import jsonable, write_json
from train.common.options import CommonOptions, prepare
from train.common.run_directory import RunDirectory


@dataclass
class Options(CommonOptions):
    """Options of an imagined command."""

    WEIGHTS_FILES = ("captioner.safetensors",)

    folder: Path = Path("a/b")
    rate: float = 0.5
    resume: bool = False


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def draws():
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002 (the global one is meant)


def test_a_seed_decides_every_draw():
    prepare(CommonOptions(seed=3))
    first = draws()
    prepare(CommonOptions(seed=3))
    assert draws() == first
    prepare(CommonOptions(seed=4))
    assert all(draw != before for draw, before in zip(draws(), first, strict=True))


def test_threads():
    prepare(CommonOptions(threads=2))
    assert torch.get_num_threads() == 2
    prepare(CommonOptions(threads=0))  # torch's choice is left alone
    assert torch.get_num_threads() == 2


def test_json_of_options(tmp_path):
    assert jsonable(Options(data_root=Path("/data")))["folder"] == "a/b"
    assert jsonable({"options": {"data_root": Path("/data"), "seed": 0}}) == {
        "options": {"data_root": "/data", "seed": 0}
    }
    write_json(tmp_path / "new" / "options.json", Options(limit=3))
    read = json.loads((tmp_path / "new" / "options.json").read_text())
    assert read == {
        "seed": 0,
        "device": "cpu",
        "threads": 0,
        "limit": 3,
        "data_root": None,
        "folder": "a/b",
        "rate": 0.5,
        "resume": False,
    }


def start(path, resume=False, **options):
    return RunDirectory(path, Options(**options), resume)


def test_a_checkpoint_brings_back_state_and_draws(tmp_path):
    directory = start(tmp_path / "run")
    state = {"weights": torch.arange(3.0), "progress": {"epoch": 2, "best": 0.5}, "names": ["a"]}
    torch.manual_seed(5)
    torch.rand(3)
    directory.save(state)
    expected = torch.rand(4)
    directory.close()
    torch.manual_seed(6)
    resumed = start(tmp_path / "run", resume=True)
    restored = resumed.restore()
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(restored.pop("weights"), state["weights"])
    assert restored == {"progress": {"epoch": 2, "best": 0.5}, "names": ["a"]}
    resumed.close()


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path):
    directory = start(tmp_path)
    directory.save({"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        directory.save({"epoch": lambda: 2})
    assert directory.restore() == {"epoch": 1}
    directory.close()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint(small_disk):
    directory = start(small_disk / "run")
    with pytest.raises(OSError, match=r"could not be written .*No space left on device.*none yet; make room"):
        directory.save({"weights": torch.zeros(200_000)})
    directory.save({"epoch": 1})
    for size in (105_000, 200_000):
        with pytest.raises(OSError, match=r"No space left on device.*the last good one stays in .*checkpoint\.pt"):
            directory.save({"weights": torch.zeros(size)})
    assert directory.restore() == {"epoch": 1}
    assert not list((small_disk / "run").glob(".*.partial"))
    with pytest.raises(OSError, match=r"No space left on device: make room and go on.*metrics\.csv"):
        directory.log(1, {f"value/{number}" * 20: 0.5 for number in range(3000)})
    directory.save({"epoch": 2})
    assert directory.restore() == {"epoch": 2}
    directory.close()


@pytest.mark.slow
def test_a_full_disk_ends_a_training_in_a_sentence_and_it_goes_on_when_there_is_room(small_disk):
    command = [sys.executable, "-m", "train.reinforce", *"--images 4 --rollouts 3 --updates 12 --limit 32".split()]
    command += [*"--threads 1 --validate-every 6 --checkpoint-minutes 0".split(), "--run-dir", str(small_disk / "run")]
    ended = subprocess.run(command, capture_output=True, text=True)  # a second checkpoint of 220 KiB finds no room
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(
        "error: a checkpoint could not be written (No space left on device)"
    )
    subprocess.run(["mount", "-o", "remount,size=900k", str(small_disk)], check=True)
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert (small_disk / "run" / "attention.safetensors").is_file()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_checkpoint_is_named(tmp_path, share):
    directory = start(tmp_path)
    directory.save({"weights": torch.zeros(1000)})
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt' is damaged .*start the run again"):
        directory.restore()
    directory.close()


@pytest.mark.parametrize("content", [b'{"seed": ', b"[]", b"\xff", b"[" * 100_000, None])
def test_damaged_options_of_a_run_are_named(tmp_path, content):
    directory = start(tmp_path)
    directory.save({})
    directory.close()
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json' is .*damaged.*start the run again"):
        start(tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"garbage" * 100, b"\0" * 500, b"PK\x03\x04" + b"\0" * 100])
def test_a_checkpoint_that_is_none_is_named(tmp_path, content):
    directory = start(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint\.pt' is damaged"):
        directory.restore()
    directory.close()


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_runs_no_code(tmp_path):
    directory = start(tmp_path / "run")
    torch.save({"trap": Trap(tmp_path / "sprung")}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(ValueError, match="is damaged"):
        directory.restore()
    assert not (tmp_path / "sprung").exists()
    directory.close()


def test_resuming_asks_for_the_same_options(tmp_path):
    directory = start(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing to resume in .*start without --resume"):
        start(tmp_path, resume=True)
    directory.save({})
    directory.close()
    with pytest.raises(ValueError, match=r"started with rate=0\.5, not 0\.25; resume with the same options"):
        start(tmp_path, resume=True, rate=0.25)
    with pytest.raises(ValueError, match="started with folder='a/b', not 'c'"):
        start(tmp_path, resume=True, folder=Path("c"))
    start(tmp_path, resume=True, threads=2).close()


def test_a_run_is_not_written_over(tmp_path):
    directory = start(tmp_path)
    directory.save({"epoch": 3})
    directory.log(1, {"loss": 2.0})
    directory.close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="holds a run already; go on with --resume"):
        start(tmp_path, rate=0.25)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_lies_in_a_folder_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        start(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def rows(path):
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_are_a_table(tmp_path):
    directory = start(tmp_path)
    directory.log(1, {"losses/train": 2.5, "val/bleu4": 0.125})
    directory.log(2, {"losses/train": 2.0, "val/length": 1.0})  # another column
    assert rows(tmp_path) == [
        {"step": "1", "losses/train": "2.5", "val/bleu4": "0.125", "val/length": ""},
        {"step": "2", "losses/train": "2", "val/bleu4": "", "val/length": "1"},
    ]
    assert any(path.name.startswith("events.out.tfevents") for path in tmp_path.iterdir())
    directory.close()


def test_rows_after_the_checkpoint_are_written_anew(tmp_path):
    directory = start(tmp_path)
    for step in (1, 2, 3):
        directory.log(step, {"loss": step})
    directory.log(2, {"loss": 20})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("1", "1"), ("2", "20")]
    directory.close()


def test_a_fresh_run_starts_a_fresh_table(tmp_path):
    directory = start(tmp_path)
    directory.log(1, {"loss": 1.0})  # stopped before the first checkpoint
    directory.close()
    for name in ("captioner", "policy"):
        (tmp_path / f"{name}.safetensors").write_text("of the run before")
    before = {*tmp_path.glob("events.out.tfevents.*")}
    again = start(tmp_path)
    again.log(1, {"loss": 3.0})
    assert [row["loss"] for row in rows(tmp_path)] == ["3"]
    again.close()
    assert not (tmp_path / "captioner.safetensors").exists()
    assert (tmp_path / "policy.safetensors").exists()  # this command writes none
    assert before
    assert not before & {*tmp_path.glob("events.out.tfevents.*")}


def test_weights_that_are_no_runs_are_left_alone(tmp_path):
    (tmp_path / "captioner.safetensors").write_text("somebody's")
    start(tmp_path).close()
    assert (tmp_path / "captioner.safetensors").read_text() == "somebody's"


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 2**63}, {"threads": -2}])
def test_seeds_and_threads_that_are_none_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be at least 0"):
        CommonOptions(**options)
