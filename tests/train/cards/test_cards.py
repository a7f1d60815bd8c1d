"""Model cards: every shipped file has one, what it says is so, and the command would write it again."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from glimpse_env.core.safetensors_files import read_metadata
from tests.conftest import ROOT
from train.cards import Options, main, scores
from train.cards.card import _contents, render_card
from train.cards.lineage import lineage, read_trainings
from train.cards.scores import Scoring, read_scores, shipped_files
from train.common.formatting import write_json

FILES = shipped_files()
named = pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.kind}-{file.path.stem}")


@pytest.fixture(scope="module")
def trainings():
    return read_trainings()


def test_every_shipped_file_has_a_card_and_every_card_a_file():
    folders = [ROOT / "glimpse_env" / "assets", ROOT / "agents" / "assets"]
    weights = {path for folder in folders for path in folder.glob("*.safetensors")}
    written = {path for folder in folders for path in folder.glob("*.md")}
    assert {path.with_suffix(".md") for path in weights} == written
    assert {file.path for file in FILES} == weights
    assert len(weights) >= 16


@named
def test_the_card_is_what_the_command_writes(file, trainings):
    """When it fails, a file, its training, its scores or its text has changed: run ``python -m train.cards``."""
    assert file.card.read_text(encoding="utf-8") == render_card(file, trainings, read_scores())


@named
def test_scores_are_of_the_files_that_ship(file):
    """When it fails, shipped weights have changed: run ``python -m train.cards``."""
    for scoring in file.scorings:
        figures = read_scores()[scoring.command]
        assert figures["files"] == scoring.digests()
        assert figures["images"] == 1000
        assert str(file.path.relative_to(ROOT)) in figures["files"]


@named
def test_the_front_matter_is_that_of_a_model_card(file):
    card = ModelCard.load(file.card)
    assert (card.data.license, card.data.library_name, card.data.language) == ("mit", "glimpse-env", "en")
    assert card.data.datasets == [file.dataset]
    bleu = [result.metric_value for result in card.data.eval_results]
    assert len(bleu) == len(file.text.plays)
    assert all(0 < value <= 1 for value in bleu)


@named
def test_the_card_tells_size_digest_and_limits(file):
    card = file.card.read_text(encoding="utf-8")
    assert f"{file.path.stat().st_size:,} bytes" in card
    assert hashlib.sha256(file.path.read_bytes()).hexdigest() in card
    for heading in ("Limits", "What is in it", "How it was made", "Results", "Licence"):
        assert f"\n## {heading}\n" in card
    assert ("Flickr8k" in card.split("## Limits")[1].split("##")[0]) == (file.dataset == "flickr8k")


def test_the_card_of_a_strip_has_its_height_and_width():
    file = next(file for file in FILES if file.kind == "captioner")
    metadata = read_metadata(file.path)
    for size, expected in ((112, "112 × 112 pixels"), ([48, 330], "48 × 330 pixels")):
        assert expected in _contents(file, metadata | {"encoder": metadata["encoder"] | {"image_size": size}})


@named
def test_the_line_that_loads_it_does(file):
    card = file.card.read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", card, re.S)
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        exec(block, names)
    loaded = names[file.kind]
    weights = sum(tensor.numel() for tensor in loaded.state_dict().values())
    assert f"{weights:,}, half precision" in card


@named
def test_its_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#]+)", file.card.read_text(encoding="utf-8")):
        assert (file.card.parent / target).is_file(), target


@named
def test_the_commands_are_those_that_made_the_file(file, trainings):
    chain, _ = lineage(file.text.run, trainings)
    noted = read_metadata(file.path)["notes"]["trained_with"]
    last = chain[-1]
    assert last.options.seed == noted["seed"]
    assert last.dataset == file.dataset
    for name, most in (("epoch", "epochs"), ("update", "updates"), ("steps", "steps")):
        assert noted.get(name, 0) <= getattr(last.options, most, 10**9)
    assert noted.get("attention") in (None, getattr(last.options, "attention", None))
    assert noted.get("command", "train.captioner") in last.command
    card = re.sub(r" +", " ", file.card.read_text(encoding="utf-8").replace("\\\n", " "))
    for training in chain:
        assert training.command in card


def test_make_weights_runs_the_trainings_in_their_order(trainings):
    """With echo for Python, the target prints its commands."""
    command = ["make", "--no-print-directory", "--old-file=.venv/.installed", "weights", "VENV_PYTHON=echo"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    commands = [f"python {line}" for line in printed if line.startswith("-m ")]
    assert commands[: len(trainings)] == [training.command for training in trainings.values()]
    assert all("train.standings" in line or "train.cards" in line for line in commands[len(trainings) :])


def test_a_run_that_no_training_leaves_is_named(trainings):
    with pytest.raises(ValueError, match=r"leaves no run 'runs/nothing'; it leaves runs/shapes-soft"):
        lineage("runs/nothing", trainings)


def test_a_file_without_a_text_is_named(monkeypatch, tmp_path):
    (tmp_path / "new.safetensors").touch()
    monkeypatch.setitem(scores.FOLDERS, "attention", tmp_path)
    with pytest.raises(ValueError, match=r"new.*without a text in train/cards/texts\.json"):
        shipped_files()


def test_what_has_changed_is_scored_again_and_nothing_else(monkeypatch, tmp_path, capsys):
    before = read_scores()
    hard, oracle = (Scoring("shapes", "test", agent, "greedy").command for agent in ("hard", "oracle"))
    write_json(tmp_path / "scores.json", {**before, hard: {**before[hard], "bleu": [0.0] * 4, "files": {}}})
    monkeypatch.setattr(scores, "SCORES", tmp_path / "scores.json")
    main(Options(out=tmp_path / "cards"))
    printed = capsys.readouterr().out
    assert hard in printed
    assert oracle not in printed
    after = read_scores()[hard]
    assert after["bleu"] == pytest.approx(before[hard]["bleu"], abs=2e-3)
    assert after["files"] == before[hard]["files"]
    written = sorted(str(path.relative_to(tmp_path / "cards")) for path in Path(tmp_path / "cards").rglob("*.md"))
    assert written == sorted(str(file.card.relative_to(ROOT)) for file in FILES)
