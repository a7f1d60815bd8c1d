"""Results of a benchmark: summed up, as a table and as CSV, written and read again."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.rollout.beam_search import Captioned
from train.benchmark.results import FORMAT, Benchmark, as_csv, earlier_results, read_results, summarise, write_results
from train.evaluate.attention_metrics import AttentionMetrics
from train.evaluate.evaluation import Evaluation
from train.evaluate.scoring import Interval, score

REFERENCES = [[["a", "red", "ring", "is", "here"]], [["a", "small", "blue", "cross"]], [["there", "is", "a", "ring"]]]


def evaluation(*texts: str) -> Evaluation:
    captions = [
        Captioned(row, words.split(), True, np.eye(49, dtype=np.float32)[: len(words.split()) + 1], 0.0)
        for row, words in enumerate(texts)
    ]
    metrics = AttentionMetrics(None, None, None, 2.0, None)
    return Evaluation(
        score(captions, REFERENCES), captions, REFERENCES, ["a", "b", "c"], {}, metrics, LocationGrid((7, 7))
    )


PERFECT = evaluation("a red ring is here", "a small blue cross", "there is a ring")
POOR = evaluation("a red ring", "a cross", "there is")


def benchmark(**changes) -> Benchmark:
    results = {
        "good": summarise([PERFECT], [POOR], ["good"]),
        "poor": summarise([POOR, POOR], [], ["runs/0", "runs/1"]),
    }
    options = {"decoders": ["greedy"], "seed": 0}
    return Benchmark("Glimpse/Shapes-v0", "test", options, "poor", results, {})._replace(**changes)


def test_runs_and_images_are_summed_up():
    result = summarise([PERFECT, POOR], [POOR], ["a", "b"])
    assert result.scores.bleu[0] == pytest.approx((1 + POOR.scores.bleu[0]) / 2)
    assert result.scores.num_images == 3
    assert result.iqm.low <= result.iqm.value <= result.iqm.high
    assert summarise([PERFECT], [], ["a"]).iqm == Interval(1, 1, 1)
    assert summarise([PERFECT], [], ["a"]).above is None
    assert result.above.value == pytest.approx((1 - POOR.scores.bleu[3]) / 2)


def test_what_is_written_is_read_again(tmp_path):
    original = benchmark()
    markdown = write_results(tmp_path, original)
    assert read_results(tmp_path) == original
    assert read_results(tmp_path / "results.json") == original
    assert json.loads((tmp_path / "results.json").read_text())["format"] == FORMAT
    assert (tmp_path / "results.md").read_text() == f"{original.title}\n\n{markdown}\n"


def test_failures_are_read_again_and_earlier_files_have_none(tmp_path):
    original = benchmark(failed={"lost": "RuntimeError: at sea"})
    write_results(tmp_path, original)
    assert read_results(tmp_path) == original
    assert (tmp_path / "results.md").read_text().endswith("Failed, and not in the table: lost (RuntimeError: at sea)\n")
    data = json.loads((tmp_path / "results.json").read_text())
    del data["failed"]
    (tmp_path / "results.json").write_text(json.dumps(data))
    assert read_results(tmp_path) == original._replace(failed={})


def test_the_csv_has_every_figure_a_line_an_agent(tmp_path):
    original = benchmark()
    rows = list(csv.DictReader(io.StringIO(as_csv(original.agents))))
    assert [row["agent"] for row in rows] == ["good", "poor"]
    assert float(rows[1]["bleu4"]) == original.agents["poor"].scores.bleu[3]
    assert (float(rows[1]["iqm_low"]), rows[1]["above"], rows[1]["seeds"]) == (
        original.agents["poor"].iqm.low,
        "",
        "2",
    )
    assert rows[0]["grounding"] == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", rf"names no format, and this version reads '{FORMAT}'; run train.benchmark again"),
        ('{"format": "glimpse-benchmark-1"}', "has the format 'glimpse-benchmark-1', and this version reads"),
        (f'{{"format": "{FORMAT}"}}', r"is damaged \(KeyError\('agents'\)\)"),
        ("[]", "holds no benchmark results"),
        ("no json", "holds no benchmark results"),
    ],
)
def test_a_file_of_another_version_or_kind_is_refused(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no benchmark results '.*gone'"):
        read_results(tmp_path / "gone")


def test_earlier_results_stand_beside_those_of_the_same_images(tmp_path):
    write_results(tmp_path, benchmark())
    decoders = benchmark().options["decoders"]
    earlier = earlier_results(tmp_path / "results.json", "Glimpse/Shapes-v0", "test", 3, decoders)
    assert set(earlier) == {f"good ({tmp_path})", f"poor ({tmp_path})"}
    assert all(result.above is None for result in earlier.values())
    for env, split, images in (
        ("Glimpse/Coco-v0", "test", 3),
        ("Glimpse/Shapes-v0", "val", 3),
        ("Glimpse/Shapes-v0", "test", 4),
    ):
        with pytest.raises(ValueError, match="only scores of the same images stand beside each other"):
            earlier_results(tmp_path, env, split, images, decoders)
    with pytest.raises(ValueError, match=r"are of greedy words, and these will be of beam words; pass --decode"):
        earlier_results(tmp_path, "Glimpse/Shapes-v0", "test", 3, ["beam"])
