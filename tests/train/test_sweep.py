"""Sweeps: what is tried, and that an interrupted one loses nothing that is done. Needs Ray: `make test-rllib`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("ray", reason="could not import 'ray': `make test-rllib` has it")

from tests.conftest import ROOT
from train.common.formatting import write_json
from train.common.run_directory import lock_folder
from train.sweep import (
    Options,
    check_sweep,
    command_line,
    main,
    make_tuner,
    parse,
    shared_arguments,
    trial_name,
    trial_options,
)

SHORT = "--algo a2c --num-envs 8 --n-steps 4 --steps 3200 --validate-every 800 --limit 8"
SHORT += " --attention-dim 8 --checkpoint-minutes 0.001"
SWEEP = ["sb3", f"--options={SHORT}", "--grid", "learning-rate=1e-3,3e-3", "--seeds", "2"]
SWEEP += ["--grace", "0", "--limit", "8"]


def test_what_is_tried():
    options = Options(grid=["learning-rate=1e-3,3e-3", "n-epochs=2,4"], draw=["ent-coef=1e-4..1e-2"], samples=3)
    tried = trial_options(options)
    assert len(tried) == 12
    assert tried[1] == {"learning-rate": "1e-3", "n-epochs": "4", "ent-coef": tried[0]["ent-coef"]}
    drawn = [float(point["ent-coef"]) for point in tried[::4]]
    assert len(set(drawn)) == 3
    assert all(1e-4 < value < 1e-2 for value in drawn)
    assert trial_options(options) == tried
    assert trial_options(Options(draw=options.draw, seed=1)) != trial_options(Options(draw=options.draw))
    assert trial_options(Options()) == [{}]
    assert trial_name({"learning-rate": "1e-3", "seed": "2"}) == "learning-rate=1e-3,seed=2"


def test_a_trial_is_told_all_that_was_chosen(tmp_path):
    options = Options(options='--algo ppo --reward "bleu + 0.5 * cider"', data_root=tmp_path / "with space", threads=2)
    parsed = parse(
        "sb3", command_line(shared_arguments(options), {"n-epochs": "3", "seed": "7"}, tmp_path / "run", True)
    )
    assert (parsed.reward, parsed.n_epochs, parsed.seed) == ("bleu + 0.5 * cider", 3, 7)
    assert (parsed.data_root, parsed.threads, parsed.resume) == (tmp_path / "with space", 2, True)
    assert check_sweep(Options(grid=["n-epochs=1,2"])).n_epochs == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": ["learning-rate"]}, "'learning-rate' cannot be tried; write it as NAME=VALUE,VALUE"),
        ({"draw": ["learning-rate=1..x"]}, "write it as NAME=LOW..HIGH, with 0 < LOW < HIGH"),
        ({"draw": ["learning-rate=2..1"]}, "0 < LOW < HIGH"),
        ({"grid": ["seed=1,2"]}, "seed is not for --grid or --draw: all trials have it from --seeds"),
        ({"grid": ["run-dir=a,b"]}, "run-dir is not for --grid or --draw"),
        ({"grid": ["n-epochs=1,2,"]}, "'n-epochs=1,2,' cannot be tried"),
        ({"grid": ["n-epochs=1,2", "n-epochs=3"]}, "n-epochs is named twice"),
        ({"grid": ["n-epochs=1,2"], "draw": ["n-epochs=1..2"]}, "n-epochs is named twice"),
        ({"grid": ["env=Glimpse/Shapes-v0,Glimpse/ShapesLarge-v0"]}, "env is not for --grid .* from --options"),
        ({"grid": ["learning-rate=1e-3,1e-4,1e-3"]}, "names a value twice; --seeds trains it again"),
        ({"gpus": 0.5}, "given 0.5 GPUs and computes on 'cpu'"),
        ({"device": "cuda"}, "given 0 GPUs and computes on 'cuda'"),
        ({"grid": ["learning-rate=1e-3,x"]}, "cannot be called with '.*--learning-rate x"),
        ({"options": "--algo ppo --seed 7"}, "--seed is not for --options"),
        ({"options": "--run-dir=x"}, "--run-dir=x is not for --options"),
        ({"options": "--resume"}, "--resume is not for --options"),
        ({"samples": 0}, "samples, seeds and concurrent must be at least 1"),
    ],
)
def test_what_cannot_be_tried_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_sweep(Options(**arguments))


def test_a_second_sweep_in_the_folder_is_refused_and_takes_nothing_away(tmp_path):
    options = Options(run_dir=tmp_path, resume=True)
    write_json(tmp_path / "sweep.json", options)
    record = tmp_path / "tune" / "record"
    record.parent.mkdir()
    record.touch()
    with lock_folder(tmp_path), pytest.raises(FileExistsError, match="another process is at work in"):
        main(options)
    assert record.exists()
    make_tuner(options)  # which takes away what Tune wrote before
    assert not record.exists()


def test_a_folder_of_that_name_that_is_no_sweeps_is_left_alone(tmp_path):
    (tmp_path / "tune").mkdir()
    with pytest.raises(FileExistsError, match="tune' is there, and not a sweep's; choose another --run-dir"):
        make_tuner(Options(run_dir=tmp_path))
    assert (tmp_path / "tune").is_dir()
    assert not (tmp_path / "sweep.json").exists()


def test_without_a_sweep_nothing_is_resumed_and_no_folder_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to resume in .*start without --resume"):
        main(Options(run_dir=tmp_path / "none", resume=True))
    assert not [*tmp_path.iterdir()]


def test_options_that_the_command_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"train\.sb3 cannot be called with '--moon 3'"):
        parse("sb3", ["--moon", "3"])


def start(folder, *more):
    command = [sys.executable, "-m", "train.sweep", *SWEEP, "--run-dir", str(folder), *more]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def done(folder):
    """Trials that have come to their end, and when each wrote its last score."""
    ended = [run.parent for run in folder.glob("*,seed=*/trial.json")]
    return {run.name: (run / "metrics.csv").stat().st_mtime_ns for run in ended}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_sweep_loses_no_trial_that_is_done(tmp_path, how):
    folder = tmp_path / "sweep"
    sweep = start(folder)
    try:
        waited = time.monotonic()
        while not done(folder):
            assert sweep.poll() is None, sweep.stdout.read()
            assert time.monotonic() - waited < 400
            time.sleep(0.2)
    finally:
        output = ""
        if how == signal.SIGINT:
            sweep.send_signal(how)
            output, _ = sweep.communicate(timeout=120)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()
    if how == signal.SIGINT:
        assert sweep.returncode == 130, output
        assert "trials to go; go on with --resume" in output
    before = done(folder)
    assert len(before) < 4
    again = start(folder, "--resume")
    resumed_output, _ = again.communicate(timeout=500)
    assert again.returncode == 0, resumed_output
    assert "4 trials done, 0 stopped early, 0 failed" in resumed_output
    after = done(folder)
    assert len(after) == 4
    assert {name: after[name] for name in before} == before  # none was trained once more
    agents = json.loads((folder / "benchmark" / "results.json").read_text())["agents"]
    assert len(agents) == 2
    assert all(len(agent["seeds"]) == 2 for agent in agents.values())


def test_poor_trials_are_stopped_early_and_the_others_are_done(tmp_path):
    arguments = ["--grid", "learning-rate=1e-3,1e-9", "--seeds", "3", "--grace", "800", "--limit", "8"]
    command = [sys.executable, "-m", "train.sweep", "sb3", f"--options={SHORT}", *arguments, "--run-dir", str(tmp_path)]
    counts, finished = [], [{}]
    for more in ([], ["--resume", "--concurrent", "1"]):
        ended = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert ended.returncode == 0, ended.stderr
        finished.append(done(tmp_path))
        assert finished[-2].items() <= finished[-1].items()  # none that was done is trained once more
        count = re.search(r"(\d+) trials done, (\d+) stopped early, 0 failed", ended.stdout).groups()
        counts.append([*map(int, count)])
        assert counts[-1][0] == len(finished[-1])
        assert sum(counts[-1]) == 6
        for record in (tmp_path / "tune").rglob("*"):
            if record.is_file():
                record.write_bytes(b"never read again: it is a pickle")
    assert counts[0][1] >= 1
    for run in tmp_path.glob("*,seed=*"):
        assert (run / "checkpoint.pt").is_file()


def test_a_sweep_is_not_begun_over_another(tmp_path):
    write_json(tmp_path / "sweep.json", Options(run_dir=tmp_path, seeds=4))
    with pytest.raises(ValueError, match="was started with seeds=4, not 5"):
        main(Options(run_dir=tmp_path, seeds=5, resume=True))
    sweep = start(tmp_path)
    output, _ = sweep.communicate(timeout=200)
    assert sweep.returncode == 1
    assert "holds a sweep already" in output.strip().splitlines()[-1]
