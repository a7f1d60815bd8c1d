"""Learning curves of runs in one picture."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from agents.loading import ASSETS, shipped_agents
from train.benchmark.learning_curves import load_curves, read_curves
from train.benchmark.seeds import seeds_of
from train.curves import Options, main, parse_levels, split_name


def run(folder, scores):
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "charts/steps", "val/bleu4"])
        rows.writerows([number, 1000 * number, score] for number, score in enumerate(scores))


def test_seeds_are_one_line_and_agents_are_told_apart(tmp_path, capsys):
    run(tmp_path / "shapes-ppo-0", [0.3, 0.6, 0.9])
    run(tmp_path / "shapes-ppo-1", [0.2, 0.5, 0.8])
    run(tmp_path / "shapes-dqn-0", [0.3, 0.4])
    runs = [str(tmp_path / "shapes-ppo-?"), str(tmp_path / "shapes-dqn-0")]
    main(Options(runs, level=["soft=0.95"], out=tmp_path / "curves.svg"))
    drawn = (tmp_path / "curves.svg").read_text()
    assert "<svg" in drawn
    assert "shapes-ppo, shapes-dqn" in capsys.readouterr().out
    main(Options(runs, out=tmp_path / "again.svg"))
    main(Options(runs, out=tmp_path / "curves.png"))
    assert Image.open(tmp_path / "curves.png").width > 500
    assert len(drawn) > len((tmp_path / "again.svg").read_text())  # the level


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("runs/shapes-ppo-?", "shapes-ppo"),
        ("a2c-[0-9]", "a2c"),
        ("ppo", "ppo"),
        ("pointer=runs/shapes-ppo-?", "pointer"),
    ],
)
def test_a_pattern_is_called_by_its_agent_or_as_one_says(run, name):
    assert split_name(run) == (name, run.rpartition("=")[2])


def test_curves_are_kept_and_come_with_the_shipped_agents(tmp_path):
    run(tmp_path / "shapes-ppo-0", [0.3, 0.6, 0.9])
    run(tmp_path / "shapes-ppo-1", [0.2, 0.51234567, 0.8])
    runs = str(tmp_path / "shapes-ppo-?")
    main(Options([f"learner={runs}"], out=tmp_path / "curves.svg", keep=tmp_path / "kept.csv"))
    curves = load_curves(tmp_path / "kept.csv")
    original = read_curves({"learner": seeds_of(runs)})
    assert curves.keys() == original.keys()
    for loaded, curve in zip(curves["learner"], original["learner"], strict=True):
        assert loaded.run == curve.run
        np.testing.assert_array_equal(loaded.steps, curve.steps)
        np.testing.assert_allclose(loaded.bleu4, curve.bleu4, rtol=1e-5)
    assert load_curves(tmp_path / "none.csv") == {}
    for dataset in ("shapes", "shapes-large", "flickr8k"):
        for name, runs in load_curves(ASSETS / f"{dataset}-curves.csv").items():
            assert name in shipped_agents(dataset)
            assert len(runs) == 3


def test_what_is_no_run_and_no_level_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty' has no metrics\.csv with scores"):
        main(Options([str(tmp_path / "empty")], out=tmp_path / "curves.svg"))
    with pytest.raises(FileNotFoundError, match="no run directory matches"):
        main(Options([str(tmp_path / "gone-?")]))
    with pytest.raises(ValueError, match=r"a level is written as NAME=BLEU-4.*not 'soft'"):
        parse_levels(["soft"])
    assert not (tmp_path / "curves.svg").exists()
