"""Model cards: every shipped file has one, what it says is so, and the command would write it again."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from glimpse_env.core.safetensors_files import read_metadata
from train.cards import command as cards
from train.cards.command import played, read_scores, render, shipped_files
from train.cards.lineage import ROOT, line_of_descent, recipe

FILES = shipped_files()
named = pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.kind}-{file.path.stem}")


@pytest.fixture(scope="module")
def steps():
    return recipe()


def test_every_shipped_file_has_a_card_and_every_card_a_file():
    folders = [ROOT / "glimpse_env" / "assets", ROOT / "agents" / "assets"]
    weights = {path for folder in folders for path in folder.glob("*.safetensors")}
    written = {path for folder in folders for path in folder.glob("*.md")}
    assert {path.with_suffix(".md") for path in weights} == written
    assert {file.path for file in FILES} == weights
    assert len(weights) >= 16


@named
def test_the_card_is_what_the_command_writes(file, steps):
    """When it fails, a file, its training, its scores or its text has changed: run ``python -m train.cards``."""
    assert file.card.read_text(encoding="utf-8") == render(file, steps, read_scores())


@named
def test_scores_are_of_the_files_that_ship(file):
    """When it fails, shipped weights have changed: run ``python -m train.cards``."""
    for agent, decode in file.text.plays:
        held = read_scores()[cards.scoring_command(file.dataset, file.split, agent, decode)]
        assert held["files"] == played(file.dataset, agent)
        assert held["images"] == 1000
        assert str(file.path.relative_to(ROOT)) in held["files"]


@named
def test_the_front_matter_is_that_of_a_model_card(file):
    card = ModelCard.load(file.card)
    assert (card.data.license, card.data.library_name, card.data.language) == ("mit", "glimpse-env", "en")
    assert card.data.datasets == [file.dataset]
    told = [result.metric_value for result in card.data.eval_results]
    assert len(told) == len(file.text.plays)
    assert all(0 < value <= 1 for value in told)


@named
def test_the_card_tells_size_digest_and_limits(file):
    card = file.card.read_text(encoding="utf-8")
    assert f"{file.path.stat().st_size:,} bytes" in card
    assert hashlib.sha256(file.path.read_bytes()).hexdigest() in card
    for heading in ("Limits", "What is in it", "How it was made", "Results", "Licence"):
        assert f"\n## {heading}\n" in card
    assert ("Flickr8k" in card.split("## Limits")[1].split("##")[0]) == (file.dataset == "flickr8k")


@named
def test_the_line_that_loads_it_does(file):
    card = file.card.read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", card, re.S)
    here: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        exec(block, here)
    loaded = here[file.kind]
    weights = sum(tensor.numel() for tensor in loaded.state_dict().values())
    assert f"{weights:,}, half precision" in card


@named
def test_its_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#]+)", file.card.read_text(encoding="utf-8")):
        assert (file.card.parent / target).is_file(), target


@named
def test_the_commands_are_those_that_made_the_file(file, steps):
    chain, _ = line_of_descent(file.text.run, steps)
    noted = read_metadata(file.path)["notes"]["trained_with"]
    last = chain[-1]
    assert last.options.seed == noted["seed"]
    assert last.dataset == file.dataset
    for name, most in (("epoch", "epochs"), ("update", "updates"), ("steps", "steps")):
        assert noted.get(name, 0) <= getattr(last.options, most, 10**9)
    assert noted.get("attention") in (None, getattr(last.options, "attention", None))
    assert noted.get("command", "train.captioner") in last.command
    shown = file.card.read_text(encoding="utf-8").replace("\\\n", " ")
    for step in chain:
        assert shlex.join(shlex.split(step.command)) in re.sub(r" +", " ", shown)


def test_a_run_that_is_not_in_the_recipe_is_named(steps):
    with pytest.raises(ValueError, match=r"leaves no run 'runs/nothing'; it leaves runs/shapes-soft"):
        line_of_descent("runs/nothing", steps)


def test_a_file_without_a_text_is_named(monkeypatch, tmp_path):
    (tmp_path / "new.safetensors").touch()
    monkeypatch.setitem(cards.FOLDERS, "attention", tmp_path)
    with pytest.raises(ValueError, match=r"new.*without a text in train/card_texts\.py"):
        shipped_files()


def test_what_has_changed_is_scored_again_and_nothing_else(monkeypatch, tmp_path, capsys):
    scores = read_scores()
    hard, oracle = (cards.scoring_command("shapes", "test", agent, "greedy") for agent in ("hard", "oracle"))
    changed = {**scores, hard: {**scores[hard], "bleu": [0.0] * 4, "files": {}}}
    cards.write_json(tmp_path / "scores.json", changed)
    monkeypatch.setattr(cards, "SCORES", tmp_path / "scores.json")
    cards.main(cards.Options(out=tmp_path / "cards"))
    said = capsys.readouterr().out
    assert hard in said
    assert oracle not in said
    again = read_scores()[hard]
    assert again["bleu"] == pytest.approx(scores[hard]["bleu"], abs=2e-3)
    assert again["files"] == scores[hard]["files"]
    written = sorted(str(path.relative_to(tmp_path / "cards")) for path in Path(tmp_path / "cards").rglob("*.md"))
    assert written == sorted(str(file.card.relative_to(ROOT)) for file in FILES)
