"""Speed is measured on real training batches, and the figures add up."""

from __future__ import annotations

import json

import pytest

from train.throughput import LENGTH, Options, main


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
