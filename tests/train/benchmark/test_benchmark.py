"""The main job as a command: a table, a picture and figures for every agent asked for."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from PIL import Image

import glimpse_env
from agents.attention import read_agent_file
from agents.loading import shipped_agents, shipped_attention
from tests.conftest import IDS, ROOT
from tests.toy_world import STRIPS, Strips, spec
from train.benchmark import Options, main
from train.benchmark.learners import find_learner
from train.benchmark.results import Result, read_results, table
from train.benchmark.runner import _live_steps
from train.evaluate.attention_metrics import AttentionMetrics
from train.evaluate.scoring import Interval, Scores
from train.reinforce.options import resolve_defaults
from train.sb3 import options as sb3_options

THEIRS = """
import numpy as np

SEEDS = []


class Fixed:
    attention = "hard"

    def __init__(self, env):
        self.locations = env.features.shape[1]

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros(len(observation["word"]), np.int64), state


class Drawn(Fixed):
    def __init__(self, env, seed=0):
        super().__init__(env)
        SEEDS.append(seed)
        self.rng = np.random.default_rng(seed)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return self.rng.integers(self.locations, size=len(observation["word"])), state
"""
SCORES = Scores([0.5, 0.4, 0.3, 0.2], 0.2, 1.0, 0.0, 1.0, 3)


def result(scores: Scores = SCORES, **named) -> Result:
    unknown = AttentionMetrics(None, None, None, 1.0, None)
    fields = {"attention_metrics": unknown, "bleu4": Interval(0.2, 0.1, 0.3), "iqm": Interval(0.4, 0.35, 0.45)}
    fields |= {"above": None, "metrics": {}, "coco": {}, "seeds": ["one"]}
    return Result(scores, **{**fields, **named})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def test_the_command_writes_table_figures_and_picture(tmp_path):
    command = [sys.executable, "-m", "train.benchmark", "--limit", "6", "--run-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--agents", "random", "hard", "soft"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    figures = json.loads((tmp_path / "results.json").read_text())
    assert set(figures["agents"]) == {"random", "hard", "soft"}
    assert all(agent["num_images"] == 6 and len(agent["bleu"]) == 4 for agent in figures["agents"].values())
    written = (tmp_path / "results.md").read_text()
    assert written.strip() in done.stdout
    for name, agent in figures["agents"].items():
        row = next(line for line in written.splitlines() if line.startswith(f"| {name} "))
        assert f"{agent['bleu'][3]:.3f}" in row
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
    head, _, first, second = (cells(line) for line in table(named, "soft").splitlines())
    row = dict(zip(head, first, strict=True))
    assert (row["METEOR"], row["CIDEr-D"], row["length"]) == ("0.123", "0.567", "1.00")
    assert row["above soft"] == "+0.0100 [-0.0200, +0.0400]"
    assert (row["95 %"], row["seeds"]) == ("0.100–0.300", "1")
    assert dict(zip(head, second, strict=True))["above soft"] == "–"


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


def test_results_say_where_the_data_lay(tmp_path):
    main(Options(agents=["center"], data_root=tmp_path, limit=2, run_dir=tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["options"]["data_root"] == str(tmp_path)


def test_an_unknown_environment_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"Glimpse/Nowhere-v0.*Glimpse/Shapes-v0"):
        main(Options(env="Glimpse/Nowhere-v0", run_dir=tmp_path))


def test_the_file_says_how_the_captions_were_made(tmp_path):
    options = Options(agents=["soft"], decode="beam", beam_width=2, seed=3, limit=2, run_dir=tmp_path)
    main(options)
    written = json.loads((tmp_path / "results.json").read_text())["options"]
    assert [written[name] for name in ("decoders", "beam_width", "seed", "precision")] == [["beam"], 2, 3, "float32"]
    assert (tmp_path / "glimpses.png").exists()


def test_an_agent_of_ones_own_stands_in_the_same_table(tmp_path, monkeypatch):
    (tmp_path / "corner.py").write_text(
        "import numpy as np\n\n\nclass Corner:\n    attention = 'hard'\n\n"
        "    def __init__(self, env):\n        pass\n\n"
        "    def predict(self, observation, state=None, episode_start=None, deterministic=False):\n"
        "        return np.full(len(observation['word']), 48), state\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    main(Options(agents=["center"], agent=["corner:Corner"], limit=3, run_dir=tmp_path / "run"))
    agents = json.loads((tmp_path / "run" / "results.json").read_text())["agents"]
    assert set(agents) == {"corner:Corner", "center"}
    assert agents["corner:Corner"]["looking"]["locations"] == 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<th scope="row" title="corner:Corner">corner:Corner</th>' in page
    rows = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert rows[0].startswith("agent,seeds,images,bleu1")
    assert len(rows) == 3


def test_what_cannot_be_is_refused_before_anybody_plays(tmp_path):
    (tmp_path / "file").touch()
    for named, error, message in (
        ({"agent": ["no_such_module:Agent"]}, ValueError, "no agent class 'Agent' in module 'no_such_module'"),
        ({"agent": ["agents.loading:AgentSpec"]}, ValueError, "AgentSpec must have attention = 'hard' or 'soft'"),
        (
            {"run_dir": tmp_path / "file" / "run"},
            OSError,
            r"--run-dir '.*file/run' cannot be written: .*file takes no files",
        ),
        ({"beside": tmp_path / "gone"}, FileNotFoundError, "no benchmark results"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1, got 0"),
        ({"length": 0.0}, ValueError, "length must be a share above 0 and at most 1"),
        ({"live": -1}, ValueError, "live must be a number of steps"),
    ):
        with pytest.raises(error, match=message):
            main(Options(**{"agents": ["center"], "limit": 2, "run_dir": tmp_path / "run", **named}))
    assert not (tmp_path / "run" / "results.json").exists()


LOST = """
import numpy as np

class Unmade:
    attention = "hard"

    def __init__(self, env):
        raise KeyError("map")

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        pass

class Lost(Unmade):
    \"\"\"Fails at its third word.\"\"\"

    def __init__(self, env):
        self.words = 0

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.words += 1
        if self.words == 3:
            raise RuntimeError("lost <b>\\nat sea")
        return np.zeros(len(observation["word"]), int), state

class Stopped(Lost):
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        raise KeyboardInterrupt

class Outside(Lost):
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full(len(observation["word"]), 49), state
"""


@pytest.fixture
def lost(tmp_path, monkeypatch):
    (tmp_path / "lost.py").write_text(LOST)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("lost", None)


def test_an_agent_that_fails_is_named_and_the_others_go_on(lost, tmp_path, capsys):
    run = tmp_path / "run"
    failing = ["lost:Lost", "lost:Unmade", "lost:Outside"]
    options = Options(agent=failing, agents=["center", "hard"], limit=3, against="lost:Lost", live=0, run_dir=run)
    with pytest.raises(SystemExit, match=r"not in the table: lost:Lost \(RuntimeError: lost <b> at sea\); lost:Unmade"):
        main(options)
    results = json.loads((run / "results.json").read_text())
    assert set(results["agents"]) == {"center", "hard"}
    assert results["failed"]["lost:Unmade"] == "KeyError: 'map'"
    assert results["failed"]["lost:Outside"].startswith("InvalidAction: ")
    assert [line.split(",")[0] for line in (run / "results.csv").read_text().splitlines()[1:]] == ["hard", "center"]
    assert "lost:Lost (RuntimeError: lost <b> at sea)" in (run / "results.md").read_text()
    page = (run / "report.html").read_text()
    assert "lost:Lost (RuntimeError: lost &lt;b&gt; at sea)" in page
    assert '<th scope="row" title="center">center</th>' in page
    assert "lost:Unmade failed and is left out (KeyError: 'map'); its traceback is in" in capsys.readouterr().err
    assert 'raise KeyError("map")' in (run / "errors.txt").read_text()
    assert (run / "glimpses.png").exists()
    main(Options(agents=["center"], limit=3, beside=run, run_dir=tmp_path / "next"))  # its results can be used
    main(Options(agents=["center"], limit=3, run_dir=run))
    assert not (run / "errors.txt").exists()
    assert read_results(run).failed == {}


def test_where_nobody_can_be_scored_that_is_all_that_is_said(lost, tmp_path):
    with pytest.raises(SystemExit, match=r"No agent could be scored\. .*lost:Lost \(RuntimeError: lost <b> at sea\)"):
        main(Options(agents=["lost:Lost"], limit=3, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_benchmark_that_is_stopped_leaves_the_page_of_what_was_scored(lost, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        main(Options(agents=["center", "lost:Stopped", "raster"], limit=3, run_dir=tmp_path / "run"))
    assert set(read_results(tmp_path / "run").agents) == {"center"}
    assert '<th scope="row" title="center">center</th>' in (tmp_path / "run" / "report.html").read_text()


def test_a_live_run_that_fails_leaves_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(sb3_options.RECIPES, "ppo", {**sb3_options.RECIPES["ppo"], "learning_rate": float("inf")})
    with pytest.raises(SystemExit, match=r"ppo, live \(FloatingPointError: weights are not finite"):
        main(Options(agents=["center"], live=4096, limit=3, run_dir=tmp_path / "run"))
    assert set(read_results(tmp_path / "run").agents) == {"center"}
    assert (tmp_path / "run" / "report.html").exists()


def test_curves_stand_on_the_page_whatever_ways_of_decoding_are_compared(tmp_path):
    run = tmp_path / "shapes-0"
    run.mkdir()
    shutil.copy(shipped_attention("hard", "shapes"), run / "attention.safetensors")
    (run / "metrics.csv").write_text("step,charts/steps,val/bleu4\n0,0,0.3\n1,100,0.5\n")
    main(Options(agents=[str(run)], decoders=["greedy", "beam"], limit=3, run_dir=tmp_path / "run"))
    assert (tmp_path / "run" / "report.html").read_text().count('<g class="mean"') == 1


def test_agents_that_look_at_random_play_once_a_seed(tmp_path):
    main(Options(agents=["random", "center"], seeds=3, limit=8, run_dir=tmp_path))
    agents = json.loads((tmp_path / "results.json").read_text())["agents"]
    assert (len(agents["random"]["seeds"]), len(agents["center"]["seeds"])) == (3, 1)
    main(Options(agents=["random"], seed=1, limit=8, run_dir=tmp_path / "one"))
    main(Options(agents=["random"], limit=8, run_dir=tmp_path / "other"))
    alone = [
        json.loads((tmp_path / name / "results.json").read_text())["agents"]["random"] for name in ("one", "other")
    ]
    assert alone[0]["bleu"] != alone[1]["bleu"]


def test_ppo_learns_live_and_stands_in_the_table_with_its_curve(tmp_path):
    options = Options(agents=["center"], live=4096, limit=4, run_dir=tmp_path)
    main(options)
    main(options)  # again: the first is replaced
    agents = json.loads((tmp_path / "results.json").read_text())["agents"]
    assert agents["ppo, live"]["seeds"] == [str(tmp_path / "ppo-live")]
    page = (tmp_path / "report.html").read_text()
    assert page.count('<g class="mean"') == 1
    assert "<strong>ppo, live</strong>" in page


@pytest.mark.parametrize(
    ("dataset", "name", "updates"),
    [
        ("shapes", "reinforce", 2000),
        ("shapes-large", "reinforce", 4000),
        ("flickr8k", "reinforce", 300),
        ("flickr8k", "self-critical", 400),
    ],
)
def test_retraining_has_the_options_of_the_shipped_agents(dataset, name, updates):
    env = next(env_id for env_id, short in IDS.items() if short == dataset)
    assert resolve_defaults(replace(find_learner(name, dataset).options, env=env)).updates == updates
    trained = read_agent_file(shipped_attention(name, dataset)).notes["trained_with"]
    assert trained["update"] <= updates


def test_a_world_says_how_the_benchmark_trains_on_it():
    kind = type("NamedStrips", (Strips,), {"name": "toy-benchmark"})
    changes = {"learner_options": {"reinforce": {"updates": 7}}, "live_steps": 300}
    world = spec(kind, "Glimpse/ToyBenchmark-v0", **changes)
    glimpse_env.register_world(world)
    learner = find_learner("reinforce", "toy-benchmark")
    assert learner == find_learner("reinforce", STRIPS.name)._replace(options=replace(learner.options, updates=7))
    assert _live_steps(Options(env=world.env_id)) == 300
    assert _live_steps(Options(env=world.env_id, agents=["random"])) == _live_steps(Options(env=STRIPS.env_id)) == 0
    assert _live_steps(Options()) == 250_000


def test_a_family_without_hyperparameters_of_its_own_has_the_usual_ones():
    world = spec(type("NamedStrips", (Strips,), {"name": "toy-family"}), "Glimpse/ToyFamily-v0")
    glimpse_env.register_world(world)
    object.__setattr__(world, "recipe", "lines")
    assert find_learner("self-critical", "toy-family") is None
    assert sb3_options.find_hyperparameters("ppo", "toy-family") == sb3_options.RECIPES["ppo"]
    assert sb3_options.find_hyperparameters("ppo", "flickr8k") != sb3_options.RECIPES["ppo"]


def test_retraining_trains_once_a_seed_and_resumes(tmp_path):
    options = Options(
        agents=["reinforce-scratch", "center"],
        retrain=True,
        seeds=2,
        length=0.001,
        limit=8,
        run_dir=tmp_path / "study",
        against="reinforce-scratch",
    )
    main(options)
    runs = [tmp_path / f"shapes-reinforce-{seed}" for seed in (0, 1)]
    agents = json.loads((tmp_path / "study" / "results.json").read_text())["agents"]
    assert agents["reinforce-scratch"]["seeds"] == [str(run) for run in runs]
    assert agents["center"]["above"]["value"] <= agents["center"]["above"]["high"]
    before = [(run / "attention.safetensors").stat().st_mtime_ns for run in runs]
    main(options)
    assert [(run / "attention.safetensors").stat().st_mtime_ns for run in runs] == before
    with pytest.raises(SystemExit, match=r"reinforce-scratch \(ValueError: .*was started with updates=3, not 6"):
        main(Options(**{**vars(options), "length": 0.002}))
    agents = json.loads((tmp_path / "study" / "results.json").read_text())["agents"]
    assert set(agents) == {"center"}  # what needs no training is not lost with what cannot be trained


def test_an_agent_of_ones_own_plays_once_a_seed_if_it_takes_one(tmp_path, monkeypatch):
    (tmp_path / "their_agents.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    names = ["their_agents:Drawn", "their_agents:Fixed"]
    main(Options(agents=names, seeds=3, seed=5, limit=8, run_dir=tmp_path / "run"))
    agents = json.loads((tmp_path / "run" / "results.json").read_text())["agents"]
    assert [len(agents[name]["seeds"]) for name in names] == [3, 1]
    theirs = importlib.import_module("their_agents")
    assert theirs.SEEDS == [5, 6, 7]
    drawn = agents["their_agents:Drawn"]["bleu4"]
    assert drawn["low"] < drawn["high"]
