"""Speed is measured on real training batches, and the figures add up."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from glimpse_env.features.table import FeatureTable
from train.throughput import Options, main
from train.throughput.feature_tables import measure_table
from train.throughput.runner import LENGTH
from train.throughput.timing import Stepper


def test_drawn_locations_are_common_to_all_images():
    masks = np.array([[True, True, False, True], [False, True, True, True]])
    env = SimpleNamespace(seed=lambda seed: None, reset=lambda: None)
    features = FeatureTable(np.zeros((2, 4, 5), np.float16))
    features.masks = masks
    assert set(Stepper(env, 3, features)._actions.flat) == {1, 3}
    features.masks = np.eye(4, dtype=bool)[:2]
    with pytest.raises(ValueError, match="images of this world share no location"):
        Stepper(env, 3, features)


def test_the_figures_of_training(tmp_path, capsys):
    main(Options(dataset="shapes", limit=128, batches=2, threads=1, json=tmp_path / "speed.json"))
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert figures["tokens_per_second"] > 0
    assert figures["seconds_per_batch"] > 0
    assert 0 < figures["share_outside_products"] < 1
    assert "tokens_per_second" in capsys.readouterr().out


def test_the_figures_of_bleu(tmp_path):
    main(Options(what="bleu", dataset="shapes", captions=16, batches=2, threads=1, json=tmp_path / "speed.json"))
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert figures["prefixes"] == 16 * LENGTH
    assert figures["largest_difference"] < 1e-12
    faster = figures["microseconds_per_prefix_nltk"] / figures["microseconds_per_prefix"]
    assert figures["times_faster"] == pytest.approx(faster)


@pytest.mark.parametrize("agent", ["soft", "hard"])
def test_the_figures_of_decoding(tmp_path, agent):
    main(Options(what="decode", dataset="shapes", agent=agent, limit=6, singles=2, json=tmp_path / "speed.json"))
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert (figures["images"], figures["beam_width"], figures["agent"]) == (6, 3, agent)
    ratio = figures["images_per_second"] / figures["images_per_second_one_at_a_time"]
    assert figures["times_faster"] == pytest.approx(ratio)


@pytest.mark.slow
def test_the_figures_of_environments(tmp_path, capsys):
    path = tmp_path / "speed.json"
    main(Options(what="env", dataset="shapes", num_envs=(1, 3), processes=2, batches=2, threads=1, json=path))
    figures = json.loads(path.read_text())
    speeds = {(speed["way"], speed["num_envs"]): speed for speed in figures["ways"]}
    names = ["SyncVectorEnv", "AsyncVectorEnv", "DummyVecEnv", "SubprocVecEnv"]
    assert speeds.keys() >= {
        ("GlimpseEnv", 1),
        ("GlimpseVectorEnv", 1),
        ("GlimpseVectorEnv", 3),
        *((n, 2) for n in names),
    }
    for speed in speeds.values():
        assert min(speed["floor"], speed["decoder"], speed["step"]) > 0
        assert speed["steps_per_second"] == pytest.approx(1e6 * speed["num_envs"] / speed["step"])
    vector = speeds["GlimpseVectorEnv", 3]
    assert vector["bleu"] > 0
    assert figures["share_of_floor_3"] == pytest.approx(vector["floor"] / vector["step"])
    single = speeds["GlimpseEnv", 1]
    assert figures["single_step_in_decoder_steps"] == pytest.approx(single["step"] / single["decoder"])
    faster = vector["steps_per_second"] / speeds["SyncVectorEnv", 3]["steps_per_second"]
    assert figures["times_SyncVectorEnv_3_at_3"] == pytest.approx(faster)
    assert figures["collecting_share_of_raw"] > 0
    assert "share of floor" in capsys.readouterr().out


def test_the_figures_of_memory(tmp_path):
    path = tmp_path / "memory.json"
    main(Options(what="memory", dataset="shapes", num_envs=(8,), steps=400, threads=1, json=path))
    figures = json.loads(path.read_text())
    assert (figures["num_envs"], figures["steps"]) == (8, 400)
    assert figures["mib_resident_after_40_steps"] > figures["mib_of_one_environment"] > 20
    ratio = figures["mib_resident_at_the_end"] / figures["mib_resident_after_40_steps"]
    assert figures["growth"] == pytest.approx(ratio - 1)


@pytest.mark.slow
def test_the_figures_of_workers(tmp_path):
    path = tmp_path / "workers.json"
    main(Options(what="workers", dataset="shapes", num_envs=(4,), workers=(1, 2), batches=1, json=path))
    figures = json.loads(path.read_text())
    first, second = figures["steps_per_second_of_1"], figures["steps_per_second_of_2"]
    assert min(first, second) > 0
    assert figures["efficiency_of_2"] == pytest.approx(second / 2 / first)


def test_the_figures_of_a_table(tmp_path):
    """150 images, in three files; the second time nothing is written."""
    small = 64 * 49 * 64 * 2
    measure = partial(measure_table, tmp_path, "shapes", 150, num_envs=8, rounds=2, device="cpu", shard_bytes=small)
    figures = measure()
    assert (figures["images"], figures["files"], figures["num_envs"]) == (150, 3, 8)
    assert figures["gib_on_disk"] == pytest.approx(150 * 49 * 64 * 2 / 2**30, rel=0.01)
    for state in ("cold", "cached"):
        assert figures[f"steps_per_second_{state}"] > 0
        assert figures[f"steps_per_second_in_memory_beside_{state}"] > 0
        assert 0.05 < figures[f"share_{state}"] < 20
        assert 0.05 < figures[f"share_{state}_by_processor_time"] < 20
    assert figures["mib_resident_peak"] >= figures["mib_resident"] > figures["mib_private"] > 20
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    measure()
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(ValueError, match="holds 150 images; name another folder"):
        measure_table(tmp_path, "shapes", 140, num_envs=8, rounds=2, device="cpu")


def test_the_figures_of_features(tmp_path):
    path = tmp_path / "features.json"
    main(Options(what="features", dataset="shapes", captioner="shapes", limit=70, json=path))
    figures = json.loads(path.read_text())
    assert figures["images"] == 70
    assert figures["images_per_second"] > 0
    assert 49 * 64 * 2 <= figures["bytes_an_image"] < 49 * 64 * 2 + 2
