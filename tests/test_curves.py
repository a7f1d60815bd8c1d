"""Learning curves of runs in one picture."""

from __future__ import annotations

import csv

import pytest
from PIL import Image

from train.curves import Options, levels, main, short_name


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
    ("pattern", "name"), [("runs/shapes-ppo-?", "shapes-ppo"), ("a2c-[0-9]", "a2c"), ("ppo", "ppo")]
)
def test_a_pattern_is_called_by_its_agent(pattern, name):
    assert short_name(pattern) == name


def test_what_is_no_run_and_no_level_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty' has no metrics\.csv with scores"):
        main(Options([str(tmp_path / "empty")], out=tmp_path / "curves.svg"))
    with pytest.raises(FileNotFoundError, match="no run directory matches"):
        main(Options([str(tmp_path / "gone-?")]))
    with pytest.raises(ValueError, match=r"a level is written as NAME=BLEU-4.*not 'soft'"):
        levels(["soft"])
    assert not (tmp_path / "curves.svg").exists()
