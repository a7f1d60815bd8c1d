"""Runs by a pattern, and means of figures."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from train.benchmark.seeds import mean_figures, mean_values, seeds_of


class Figures(NamedTuple):
    bleu: list[float]
    grounding: float | None


def test_a_pattern_stands_for_run_directories_in_their_order(tmp_path, monkeypatch):
    for name in ("ppo-1", "ppo-0", "ppo-10", "a2c-0"):
        (tmp_path / name).mkdir()
    (tmp_path / "ppo-2").touch()  # no directory
    assert seeds_of(str(tmp_path / "ppo-?")) == [str(tmp_path / "ppo-0"), str(tmp_path / "ppo-1")]
    monkeypatch.chdir(tmp_path)
    assert seeds_of("*-0") == ["a2c-0", "ppo-0"]
    assert seeds_of("soft:ppo-?") == ["soft:ppo-0", "soft:ppo-1"]


def test_a_name_stands_for_itself(tmp_path):
    odd = tmp_path / "run[1]"
    odd.mkdir()
    assert seeds_of("soft") == ["soft"]
    assert seeds_of("hard:file.safetensors") == ["hard:file.safetensors"]
    assert seeds_of(str(odd)) == [str(odd)]


def test_a_pattern_without_runs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run directory matches 'nothing-\*'"):
        seeds_of("nothing-*")


def test_means_go_field_by_field():
    assert mean_figures([Figures([0.0, 1.0], None), Figures([1.0, 2.0], 0.5)]) == Figures([0.5, 1.5], None)
    assert mean_figures([Figures([0.0], 0.25), Figures([1.0], 0.75)]) == Figures([0.5], 0.5)
    assert mean_values([{"meteor": 0.2}, {"meteor": 0.4}]) == {"meteor": pytest.approx(0.3)}
