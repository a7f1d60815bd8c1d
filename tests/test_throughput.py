"""Speed is measured on real training batches, and the figures add up."""

from __future__ import annotations

import json

from train.throughput import Options, main


def test_the_figures_of_training(tmp_path, capsys):
    main(Options(dataset="shapes", limit=128, batches=2, threads=1, json=tmp_path / "speed.json"))
    figures = json.loads((tmp_path / "speed.json").read_text())
    assert figures["tokens_per_second"] > 0
    assert figures["seconds_per_batch"] > 0
    assert 0 < figures["share_outside_products"] < 1
    assert "tokens_per_second" in capsys.readouterr().out
