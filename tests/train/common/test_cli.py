"""How commands end: a sentence for what their user can mend, a traceback for what they cannot."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from train.common.cli import is_user_error, run_command
from train.common.options import CommonOptions, check_writable

COMMANDS = sorted(
    {f"train.{path.stem}" for path in (ROOT / "train").glob("*.py") if "__main__" in path.read_text()}
    | {f"train.{path.parent.name}" for path in (ROOT / "train").glob("*/__main__.py")}
)


@dataclass
class Options:
    count: int = 1


def ended(main, *arguments):
    with pytest.raises(SystemExit) as caught:
        run_command(main, Options, arguments)
    return caught.value.code


def test_the_status_is_what_main_returns():
    assert ended(lambda options: None) == 0
    assert ended(lambda options: options.count, "--count", "3") == 3


def test_what_the_packages_announce_is_said_in_a_sentence(capsys, monkeypatch):
    assert ended(lambda options: CommonOptions(limit=0)) == 1
    assert capsys.readouterr().err == "error: limit must be at least 1 image, got 0\n"
    assert ended(lambda options: Path("nowhere", "at", "all").read_text()) == 1
    assert "No such file or directory: 'nowhere/at/all'" in capsys.readouterr().err
    monkeypatch.setenv("GLIMPSE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="at least 1 image"):
        run_command(lambda options: CommonOptions(limit=0), Options, [])


def test_what_a_library_raises_keeps_its_traceback():
    with pytest.raises(ValueError, match="could not be broadcast"):
        run_command(lambda options: np.ones(2) + np.ones(3), Options, [])
    with pytest.raises(TypeError):
        run_command(lambda options: CommonOptions(limit="one"), Options, [])


def test_announced_is_what_these_packages_raise(tmp_path):
    with pytest.raises(IsADirectoryError) as caught:
        check_writable(tmp_path, "--out")
    assert is_user_error(caught.value)
    assert not is_user_error(ValueError("from nowhere"))


def test_an_interruption_is_no_error(capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    assert ended(interrupt) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train.evaluate --agent nobody --limit 1", "unknown agent 'nobody'"),
        ("train.evaluate --agent center --limit 1 --json README.md/figures.json", "README.md takes no files"),
        ("train.gif --env Glimpse/Moon-v0 --photo x.png", "unknown environment 'Glimpse/Moon-v0'"),
        ("train.gif --out README.md/g.gif", "README.md takes no files"),
        ("train.gif --out g.png", "'g.png' is no GIF; let its name end in .gif"),
        ("train.gif --photo nowhere.png --out build/g.gif", "nowhere.png is missing"),
        ("train.gif --images 5000 --out build/g.gif", "row 5000 does not exist"),
        ("train.reinforce --updates 0", "updates"),
        ("train.sb3 --algo ppo --n-steps 0", "n_steps"),
    ],
)
def test_a_user_sees_a_sentence_and_no_traceback(command, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *words = command.split()
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as caught:
        run_command(module.main, module.Options, words)
    assert caught.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_every_command_begins_and_ends_so():
    assert len(COMMANDS) > 10
    for name in COMMANDS:
        source = ROOT / f"{name.replace('.', '/')}.py"
        source = source if source.is_file() else source.with_suffix("") / "__main__.py"
        assert source.read_text().endswith("run_command(main, Options)\n"), name
