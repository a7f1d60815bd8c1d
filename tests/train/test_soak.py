"""Long trials in short: they pass what holds, and notice what does not."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import tyro

from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.models.encoders.cnn import EncoderConfig
from tests.conftest import FEATURES, build_captioner
from tests.toy_world import COLOURS, STRIPS
from train.soak import TRAININGS, Killer, LongRunTrend, Options, Resume, Steps, _step, compare, main


@pytest.mark.slow
def test_commands_killed_at_random_moments_end_as_if_left_alone(capsys):
    assert main(Options(Resume(kills=1, trainings=("dqn",)))) == 0
    name, kills, resumed, _, differences = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert (name.strip(), differences.strip()) == ("dqn", "none")
    assert int(kills) >= int(resumed) >= 1  # one that was killed before its first checkpoint shows nothing


def test_a_folder_that_is_there_and_no_kills_are_refused(tmp_path):
    (tmp_path / "dqn").mkdir()
    with pytest.raises(FileExistsError, match="is there already; name another folder, or delete it"):
        main(Options(Resume(trainings=("dqn",), folder=tmp_path)))
    with pytest.raises(ValueError, match="kills must be at least 1, got 0"):
        main(Options(Resume(kills=0)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of REINFORCE, left alone."""
    killer = Killer("reinforce", tmp_path_factory.mktemp("soak"), np.random.default_rng(0))
    folder = killer.folder / "whole"
    assert killer.run(folder)
    return folder


STEADY = [(0.5 + 0.001 * (-1) ** period, 0.001) for period in range(20)]


@pytest.mark.parametrize(
    ("memory", "files", "rewards", "steady"),
    [
        ([100.0, 101.0], [9, 9], STEADY, True),
        ([100.0, 103.0], [9, 9], STEADY, False),
        ([100.0, 100.0], [9, 10], STEADY, False),
        (
            [100.0, 100.0],
            [9, 9],
            [(mean + (period > 9) / 100, error) for period, (mean, error) in enumerate(STEADY)],
            False,
        ),
        ([100.0, 100.0], [9, 9], [*STEADY[:-1], (float("nan"), 0.001)], False),
        ([100.0, 100.0], [9, 9], [*STEADY[:-1], (0.5, float("nan"))], False),
    ],
    ids=["steady", "memory", "files", "drift", "nan", "no-episodes"],
)
def test_what_grows_or_drifts_or_is_no_number_is_not_steady(memory, files, rewards, steady):
    assert LongRunTrend.from_periods(memory, files, rewards).steady(0.02) == steady


def change_weight(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["attention"]["key.weight"][0, 0] += 1e-6
    torch.save(state, folder / "checkpoint.pt")


def change_draws(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["generator"][0] += 1
    torch.save(state, folder / "checkpoint.pt")


def change_figure(folder):
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("0.", "1.", 1))


def change_best(folder):
    file = folder / "attention.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (change_weight, "checkpoint.pt: ['attention']['key.weight']"),
        (change_draws, "checkpoint.pt: ['generator']"),
        (change_figure, "metrics.csv"),
        (change_best, "attention.safetensors"),
    ],
)
def test_whatever_differs_is_named(run, tmp_path, change, where):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert compare(run, copy) is None
    change(copy)
    assert compare(run, copy) == where


def test_a_command_that_fails_by_itself_ends_the_trial(tmp_path, monkeypatch):
    monkeypatch.setitem(TRAININGS, "broken", ("train.reinforce", "--images 0"))
    with pytest.raises(RuntimeError, match=r"train\.reinforce --images 0 .* failed by itself; .*whole\.txt has its"):
        main(Options(Resume(kills=1, trainings=("broken",), folder=tmp_path)))
    assert "images must be at least 1" in (tmp_path / "broken" / "whole.txt").read_text()
    with pytest.raises(ValueError, match="unknown training 'sarsa'; expected one of captioner, semi"):
        main(Options(Resume(trainings=("sarsa",), folder=tmp_path)))


def test_steps_leave_memory_files_and_rewards_where_they_were(capsys):
    arguments = "steps --steps 12000 --num-envs 32 --may-grow 0.05".split()
    options = tyro.cli(Options, args=arguments)
    assert options.trial == Steps(steps=12_000, num_envs=32, may_grow=0.05)
    assert main(options) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in ("resident memory, MiB", "open files", "mean reward by halves"))
    assert main(tyro.cli(Options, args=[*arguments[:-1], "-0.9"])) == 1  # nothing may grow so little
    with pytest.raises(ValueError, match="unknown environment 'Glimpse/Nothing-v0'"):
        main(Options(Steps(env="Glimpse/Nothing-v0")))
    with pytest.raises(ValueError, match="a twentieth of 1000 steps ends no caption; take more --steps"):
        main(Options(Steps(steps=1000)))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_steps_look_at_locations_that_images_have(mode):
    sees = EncoderConfig(image_size=STRIPS.image_size, grid=STRIPS.grid.shape, feature_dim=FEATURES)
    captioner = build_captioner(words=tuple(COLOURS), sees=sees, dataset=STRIPS.name)
    envs = GlimpseVectorEnv(4, STRIPS.name, autoreset_mode=mode, captioner=captioner)
    envs.reset(seed=0)
    assert len([reward for _ in range(30) for reward in _step(envs, np.random.default_rng(0))]) > 4
