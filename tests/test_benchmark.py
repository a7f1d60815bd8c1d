"""The main job as a command: a table, a picture and figures for every agent asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from agents.loading import shipped_agents, shipped_attention
from train.benchmark import Options, main
from train.looking import Looking
from train.results import Result, table
from train.scoring import Interval, Scores

ROOT = Path(__file__).parent.parent
SCORES = Scores([0.5, 0.4, 0.3, 0.2], 0.2, 1.0, 0.0, 1.0, 3)


def result(scores: Scores = SCORES, **named) -> Result:
    unknown = Looking(None, None, None, 1.0, None)
    parts = {"looking": unknown, "bleu4": Interval(0.2, 0.1, 0.3), "iqm": Interval(0.4, 0.35, 0.45)}
    parts |= {"above": None, "coco": {}, "seeds": ["one"]}
    return Result(scores, **{**parts, **named})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


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
    strong = SCORES._replace(bleu=[0.5, 0.4, 0.3, 0.25])
    lines = table({"weak": result(), "strong": result(strong)}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["strong", "weak"]


def test_agents_and_decoders_are_crossed(tmp_path):
    main(Options(agents=["center", "uniform"], decoders=["greedy", "beam"], limit=3, run_dir=tmp_path))
    figures = json.loads((tmp_path / "results.json").read_text())["agents"]
    assert set(figures) == {"center, greedy", "center, beam", "uniform, greedy", "uniform, beam"}
    assert not (tmp_path / "glimpses.png").exists()  # neither is an agent whose glimpses are drawn


def test_what_nobody_has_a_figure_for_is_no_column():
    assert not {"METEOR", "grounding", "above soft"} & set(cells(table({"one": result()}, "soft").splitlines()[0]))
    coco = {"meteor": 0.123, "rouge_l": 0.4, "cider_d": 0.567}
    named = {"one": result(coco=coco, above=Interval(0.01, -0.02, 0.04)), "other": result()}
    head, _, one, other = (cells(line) for line in table(named, "soft").splitlines())
    shown = dict(zip(head, one, strict=True))
    assert (shown["METEOR"], shown["CIDEr-D"], shown["length"]) == ("0.123", "0.567", "1.00")
    assert shown["above soft"] == "+0.0100 [-0.0200, +0.0400]"
    assert (shown["95 %"], shown["seeds"]) == ("0.100–0.300", "1")
    assert dict(zip(head, other, strict=True))["above soft"] == "–"


def test_runs_of_a_pattern_are_seeds_of_one_agent(tmp_path):
    for seed, agent in enumerate(("soft", "hard")):
        run = tmp_path / "runs" / f"shapes-{seed}"
        run.mkdir(parents=True)
        shutil.copy(shipped_attention(agent, "shapes"), run / "attention.safetensors")
    pattern = str(tmp_path / "runs" / "shapes-?")
    main(Options(agents=["hard", pattern], against="hard", limit=20, run_dir=tmp_path))
    figures = json.loads((tmp_path / "results.json").read_text())["agents"]
    assert figures[pattern]["seeds"] == [str(tmp_path / "runs" / f"shapes-{seed}") for seed in (0, 1)]
    main(Options(agents=[figures[pattern]["seeds"][0]], limit=20, run_dir=tmp_path / "alone"))
    alone = json.loads((tmp_path / "alone" / "results.json").read_text())["agents"]
    first, second = next(iter(alone.values()))["bleu"][3], figures["hard"]["bleu"][3]
    assert figures[pattern]["bleu"][3] == pytest.approx((first + second) / 2)
    assert figures[pattern]["above"]["value"] == pytest.approx((first - second) / 2)
    assert figures["hard"]["above"] is None


def test_a_pattern_without_runs_and_an_agent_to_compare_with_that_does_not_play_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run directory matches .*nothing-\?"):
        main(Options(agents=[str(tmp_path / "nothing-?")], run_dir=tmp_path))
    with pytest.raises(ValueError, match=r"--against 'soft' is none of the agents.*hard"):
        main(Options(agents=["hard"], against="soft", run_dir=tmp_path))


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
