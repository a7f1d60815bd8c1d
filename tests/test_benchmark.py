"""The main job as a command: a table, a picture and figures for every agent asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from agents.loading import shipped_agents
from train.benchmark import Options, main, table
from train.scoring import Scores

ROOT = Path(__file__).parent.parent


def test_the_command_writes_table_figures_and_picture(tmp_path):
    command = [sys.executable, "-m", "train.benchmark", "--limit", "6", "--run-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--agents", "random", "hard", "soft"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    figures = json.loads((tmp_path / "results.json").read_text())
    assert set(figures["agents"]) == {"random", "hard", "soft"}
    assert all(one["num_images"] == 6 and len(one["bleu"]) == 4 for one in figures["agents"].values())
    written = (tmp_path / "results.md").read_text()
    assert written.strip() in done.stdout
    for name, one in figures["agents"].items():
        row = next(line for line in written.splitlines() if line.startswith(f"| {name} "))
        assert f"{one['bleu'][3]:.3f}" in row
    assert Image.open(tmp_path / "glimpses.png").width > 500
    assert "train.caption" in done.stdout


def test_the_table_is_sorted_by_bleu4():
    weak = Scores([0.5, 0.4, 0.3, 0.2], 0.2, 1.0, 0.0, 1.0, 3)
    strong = weak._replace(bleu=[0.5, 0.4, 0.3, 0.25])
    lines = table({"weak": weak, "strong": strong}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["strong", "weak"]


def test_agents_and_decoders_are_crossed(tmp_path):
    main(Options(agents=["center", "uniform"], decoders=["greedy", "beam"], limit=3, run_dir=tmp_path))
    figures = json.loads((tmp_path / "results.json").read_text())["agents"]
    assert set(figures) == {"center, greedy", "center, beam", "uniform, greedy", "uniform, beam"}
    assert not (tmp_path / "glimpses.png").exists()  # neither is an agent whose glimpses are drawn


def test_coco_scores_are_columns_of_their_own():
    scores = Scores([0.5, 0.4, 0.3, 0.2], 0.2, 1.0, 0.0, 1.0, 3)
    lines = table({"one": scores}, {"one": {"meteor": 0.123, "rouge_l": 0.4, "cider_d": 0.567}}).splitlines()
    cells = dict(zip(*([cell.strip() for cell in lines[i].split("|")] for i in (0, 2)), strict=True))
    assert (cells["METEOR"], cells["CIDEr-D"], cells["length"]) == ("0.123", "0.567", "1.00")


def test_the_default_agents_are_those_that_can_play_as_shipped():
    assert {"soft", "hard", "no-attention", "oracle", "shuffled"} <= set(shipped_agents("shapes"))
    assert not {"no-attention", "oracle"} & set(shipped_agents("flickr8k"))
    assert {"random", "center", "uniform"} <= set(shipped_agents("coco"))
    assert not {"soft", "hard", "reinforce", "ppo", "shuffled"} & set(shipped_agents("coco"))


def test_an_unknown_environment_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"Glimpse/Nowhere-v0.*Glimpse/Shapes-v0"):
        main(Options(env="Glimpse/Nowhere-v0", run_dir=tmp_path))


def test_the_file_says_how_the_captions_were_made(tmp_path):
    options = Options(agents=["soft"], decode="beam", beam_width=2, seed=3, limit=2, run_dir=tmp_path)
    main(options)
    said = json.loads((tmp_path / "results.json").read_text())["options"]
    assert (said["decoders"], said["beam_width"], said["seed"], said["precision"]) == (["beam"], 2, 3, "float32")
    assert (tmp_path / "glimpses.png").exists()
