"""Evaluation as a command, against captions played by hand through the public environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import tyro
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu

import glimpse_env  # noqa: F401 (registers the ids)
from agents.attention import AdditiveAttention, AttentionConfig, save_attention
from agents.loading import load_agent
from glimpse_env.metrics.cider import DocumentFrequencies, cider_d
from glimpse_env.metrics.rouge import rouge_l
from glimpse_env.rollout.beam_search import BeamSearch
from glimpse_env.rollout.decode import BATCH, decode
from train.evaluate.attention_metrics import measure_attention
from train.evaluate.caption_files import captions_of, read_captions, write_captions
from train.evaluate.evaluation import Options, evaluate, main, make_env_and_agent, measure_spread
from train.evaluate.scoring import DANGLING

LIMIT = 5


@pytest.fixture
def options(captioner_file, tmp_path):
    """Keyword arguments of a quick evaluation."""
    return {"captioner": str(captioner_file), "limit": LIMIT, "json": tmp_path / "out" / "figures.json"}


def play_by_hand(name, captioner_file, **kwargs):
    """Captions, references and whether they ended, one episode of the registered environment after the other."""
    attention = "soft" if name.startswith(("soft", "uniform")) else "hard"
    env = gym.make("Glimpse/Shapes-v0", split="val", captioner=str(captioner_file), attention=attention, **kwargs)
    agent = load_agent(name, env)
    captions, references, ended = [], [], []
    for row in range(LIMIT):
        observation, info = env.reset(seed=row, options={"image": row})
        state, start, done, steps = None, np.ones(1, bool), False, 0
        while not done:
            action, state = agent.predict(observation, state, start, deterministic=True)
            observation, _, done, _, info = env.step(action)
            start, steps = np.zeros(1, bool), steps + 1
        words = info["caption"].split()
        captions.append(words)
        references.append(env.unwrapped.dataset.references(row))
        ended.append(steps == len(words) + 1)
    env.close()
    return captions, references, ended


@pytest.mark.filterwarnings("ignore::UserWarning:nltk")  # of every n-gram order without a match
@pytest.mark.parametrize("kind", ["soft", "hard", "center", "raster", "uniform", "oracle"])
def test_figures_are_those_of_episodes_played_by_hand(options, captioner_file, attention_file, kind):
    name = f"{kind}:{attention_file}" if kind in ("soft", "hard") else kind
    main(Options(agent=name, **options))
    figures = json.loads(options["json"].read_text())
    captions, references, ended = play_by_hand(name, captioner_file)
    for order in (1, 2, 3, 4):
        expected = corpus_bleu(references, captions, [1 / order] * order)
        assert figures["bleu"][order - 1] == pytest.approx(expected, abs=1e-9)
    smooth = SmoothingFunction().method1
    scores = [
        sentence_bleu(refs, words, smoothing_function=smooth) for refs, words in zip(references, captions, strict=True)
    ]
    assert figures["sentence_bleu"] == pytest.approx(np.mean(scores))
    bad = [not end or not words or words[-1] in DANGLING for end, words in zip(ended, captions, strict=True)]
    assert figures["bad_endings"] == pytest.approx(np.mean(bad))
    closest = [
        min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]
        for refs, words in zip(references, captions, strict=True)
    ]
    assert figures["length_ratio"] == pytest.approx(sum(map(len, captions)) / sum(closest))


def test_the_file_says_what_was_scored(options):
    main(Options(agent="random", split="test", seed=4, **options))
    figures = json.loads(options["json"].read_text())
    settings = {name: figures[name] for name in ("agent", "env", "split", "decode", "num_images", "seed", "captioner")}
    assert settings == {
        "agent": "random",
        "env": "Glimpse/Shapes-v0",
        "split": "test",
        "decode": "greedy",
        "num_images": LIMIT,
        "seed": 4,
        "captioner": options["captioner"],
    }
    assert len(figures["bleu"]) == 4
    assert all(0 <= value <= 1 for value in (*figures["bleu"], figures["bad_endings"], figures["distinct"]))
    assert figures["length_ratio"] > 0


WAYS = {
    "greedy": [],
    "sample": ["--temperature", "0.7"],
    "top-k": ["--top-k", "3"],
    "top-p": ["--top-p", "0.6"],
    "beam": ["--beam-width", "4", "--length-normalisation", "0.5", "--block-ngram", "2"],
}


@pytest.mark.parametrize("decoding", WAYS)
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_every_decoder_with_every_attention(options, attention_file, capsys, kind, decoding):
    """What another programme reads in the file, and that the captions are those of the decoder asked for."""
    captions, agent = options["json"].with_name("captions.jsonl"), f"{kind}:{attention_file}"
    line = ["--agent", agent, "--captioner", options["captioner"], "--limit", "3", "--decode", decoding]
    line += WAYS[decoding]
    parsed = tyro.cli(Options, args=[*line, "--json", str(options["json"]), "--captions", str(captions)])
    main(parsed)
    figures = json.loads(options["json"].read_text())
    assert {name: figures[name] for name in ("agent", "env", "split", "decode", "num_images")} == {
        "agent": agent,
        "env": "Glimpse/Shapes-v0",
        "split": "val",
        "decode": decoding,
        "num_images": 3,
    }
    assert isinstance(figures["bleu"], list)
    assert len(figures["bleu"]) == 4
    values = [*figures["bleu"], *(figures[name] for name in ("length_ratio", "bad_endings", "sentence_bleu"))]
    assert all(isinstance(value, float) and value >= 0 for value in values)
    assert max(*figures["bleu"], figures["bad_endings"]) <= 1
    printed = capsys.readouterr().out
    assert "  ".join(f"{value:.4f}" for value in figures["bleu"]) in printed
    env, player = make_env_and_agent(parsed)
    expected = decode(env.captioner, env.features, player, range(3), parsed.decoding, rng=np.random.default_rng(0))
    written = lines(captions)
    assert [record["caption"] for record in written] == [" ".join(caption.words) for caption in expected]
    scores = [caption.log_probability for caption in expected]
    assert [record["log_probability"] for record in written] == pytest.approx(scores)


def test_more_images_than_a_batch_are_captioned_in_order(options):
    evaluation = evaluate(Options(agent="center", **{**options, "limit": BATCH + 3}))
    assert len(evaluation.references) == len(set(evaluation.names)) == BATCH + 3
    assert evaluation.scores.num_images == BATCH + 3
    assert [caption.row for caption in evaluation.captions] == list(range(BATCH + 3))
    alone = evaluate(Options(agent="center", **options)).captions
    assert [caption.words for caption in evaluation.captions[:LIMIT]] == [caption.words for caption in alone]


@pytest.mark.parametrize("decode", ["sample", "top-k", "top-p"])
def test_drawn_words_follow_from_the_seed(options, decode):
    def words(seed):
        captions = evaluate(Options(agent="center", decode=decode, seed=seed, **options)).captions
        return [caption.words for caption in captions]

    assert words(0) == words(0)
    assert words(0) != words(1)


def test_narrow_draws_are_greedy(options):
    greedy = [caption.words for caption in evaluate(Options(agent="center", **options)).captions]
    for narrow in ({"decode": "top-k", "top_k": 1}, {"decode": "sample", "temperature": 1e-4}):
        assert [caption.words for caption in evaluate(Options(agent="center", **narrow, **options)).captions] == greedy


def test_a_stochastic_agent_draws_its_glimpses(options, attention_file):
    def glimpses(**more):
        captions = evaluate(Options(agent=f"hard:{attention_file}", **more, **options)).captions
        return [caption.glimpses.argmax(1).tolist() for caption in captions]

    assert glimpses() == glimpses(seed=1)
    assert glimpses(stochastic=True) == glimpses(stochastic=True)
    assert glimpses(stochastic=True) != glimpses(stochastic=True, seed=1)


@pytest.mark.parametrize("kind", ["soft", "hard", "shuffled", "oracle"])
def test_how_the_agent_looked_is_said(options, attention_file, capsys, kind):
    scored = Options(agent=kind if kind == "oracle" else f"{kind}:{attention_file}", **options)
    main(scored)
    metrics = json.loads(options["json"].read_text())["looking"]
    env, agent = make_env_and_agent(scored)
    expected = measure_attention(env, agent, evaluate(scored).captions)
    assert metrics == expected._asdict()
    assert list(metrics) == ["grounding", "empty", "entropy", "locations", "agreement"]
    assert metrics["agreement"] is None  # no soft attention is shipped for a captioner of such sizes
    assert f"\nlooking  {expected}\n" in capsys.readouterr().out


def test_spread(options):
    def spread(**changes):
        changed = Options(agent="uniform", **changes, **options)
        return measure_spread(changed, make_env_and_agent(changed)[0])

    single = spread(spread=1)
    assert single.best == single.random
    three = spread(spread=3)
    means = [spread(spread=1, seed=seed).random for seed in range(3)]
    assert three.random == pytest.approx(np.mean(means))
    assert max(means) <= three.best <= 1
    assert three.best > three.random
    main(Options(agent="center", spread=3, **options))
    figures = json.loads(options["json"].read_text())["spread"]
    assert figures == {
        "random": three.random,
        "best": three.best,
        "paths": 3,
        "spread": pytest.approx(three.best - three.random),
    }


# --- captions in a file -----------------------------------------------------------------------------------------------


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_captions_are_written_and_read_again(options, tmp_path):
    evaluation = evaluate(Options(agent="random", **options))
    words = [caption.words for caption in evaluation.captions]
    words[2] = "ein grüner Kreis 圆 \u00a0".split()
    words[3] = []
    captions = [
        caption._replace(words=new_words) for caption, new_words in zip(evaluation.captions, words, strict=True)
    ]
    path = tmp_path / "new" / "captions.jsonl"
    write_captions(path, evaluation.names, captions, evaluation.references)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    records = lines(path)
    assert [record["image_id"] for record in records] == evaluation.names
    assert [record["ended"] for record in records] == [caption.ended for caption in captions]
    assert [record["log_probability"] for record in records] == [caption.log_probability for caption in captions]
    smooth = SmoothingFunction().method1
    for record, caption_words, references in zip(records, words, evaluation.references, strict=True):
        assert record["bleu4"] == pytest.approx(sentence_bleu(references, caption_words, smoothing_function=smooth))
    assert captions_of(evaluation.names, read_captions(path), path) == words
    crossed = captions_of([evaluation.names[4], evaluation.names[0]], read_captions(path), path)
    assert crossed == [words[4], words[0]]  # names, not lines, pair up


@pytest.mark.parametrize(
    "line",
    [
        "",
        "a dog runs",
        '{"image_id": "a", "caption": ',
        '{"image_id": "a"}',
        '{"caption": "a dog"}',
        '{"image_id": "a", "caption": ["a", "dog"]}',
        '{"image_id": "a", "caption": null}',
        '{"image_id": ["a"], "caption": "a dog"}',
        '["a", "a dog"]',
        "3",
        "null",
    ],
)
def test_a_line_that_is_no_caption_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"image_id": "a", "caption": "a dog"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: not a caption"):
        read_captions(path)


def test_images_without_a_caption_are_counted(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"image_id": "b", "caption": "a dog"}\n')
    with pytest.raises(ValueError, match=r"few\.jsonl has no caption of 'a' \(2 of 3 images are missing\)"):
        captions_of(["a", "b", "c"], read_captions(path), path)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_captions(tmp_path / "none.jsonl")


# --- against another run ----------------------------------------------------------------------------------------------


def against(options):
    return json.loads(options["json"].read_text())["against"]


def test_a_run_against_itself_and_against_a_better_one(options, tmp_path, capsys):
    center_file, reference_file = tmp_path / "own.jsonl", tmp_path / "told.jsonl"
    main(Options(agent="center", captions=center_file, **options))
    assert "against" not in json.loads(options["json"].read_text())
    main(Options(agent="center", against=center_file, **options))
    comparison = against(options)
    assert comparison == {
        "captions": str(center_file),
        "difference": 0,
        "low": 0,
        "high": 0,
        "wins": 0.5,
        "resamples": 2000,
    }
    evaluation = evaluate(Options(agent="center", **options))
    best = [
        caption._replace(words=refs[0])
        for caption, refs in zip(evaluation.captions, evaluation.references, strict=True)
    ]
    write_captions(reference_file, evaluation.names, best, evaluation.references)
    capsys.readouterr()
    main(Options(agent="center", against=reference_file, **options))
    comparison = against(options)
    assert comparison["difference"] == pytest.approx(evaluation.scores.bleu[3] - 1)
    assert comparison["low"] <= comparison["difference"] <= comparison["high"] < 0
    assert comparison["wins"] == 0
    printed = f"BLEU-4 {comparison['difference']:+.4f}, 95 % interval {comparison['low']:+.4f} to"
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["missing", "short", "bad"])
def test_captions_that_cannot_be_compared_are_named_and_nothing_is_written(options, tmp_path, wrong):
    path = tmp_path / "theirs.jsonl"
    if wrong == "short":
        main(Options(agent="center", captions=path, captioner=options["captioner"], limit=2))
    elif wrong == "bad":
        path.write_text("[]\n")
    error = FileNotFoundError if wrong == "missing" else ValueError
    with pytest.raises(error, match=r"theirs\.jsonl"):
        main(Options(agent="center", against=path, **options))
    assert not options["json"].exists()


# --- COCO's figures ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cocos_figures_stand_beside_bleu(options, capsys):
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    main(Options(agent="center", coco=True, **options))
    figures = json.loads(options["json"].read_text())
    evaluation = evaluate(Options(agent="center", **options))
    pairs = [(refs, caption.words) for refs, caption in zip(evaluation.references, evaluation.captions, strict=True)]
    frequencies = DocumentFrequencies.from_references(evaluation.references)
    assert figures["rouge_l"] == pytest.approx(np.mean([rouge_l(*pair) for pair in pairs]))
    assert figures["cider_d"] == pytest.approx(np.mean([cider_d(*pair, frequencies) for pair in pairs]))
    assert 0 < figures["meteor"] < 1
    assert f"meteor {figures['meteor']:.4f}  rouge_l {figures['rouge_l']:.4f}  cider_d" in capsys.readouterr().out


def test_without_java_nothing_is_captioned(options, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("", ".cider.cider", ".meteor.meteor", ".rouge.rouge"):  # as if installed, wherever this runs
        monkeypatch.setitem(sys.modules, f"pycocoevalcap{name}", ModuleType(name))
    with pytest.raises(FileNotFoundError, match="leave out --coco"):
        main(Options(agent="center", coco=True, **options))
    assert not options["json"].exists()


# --- options and errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"env": "Glimpse/Shape-v0"}, ValueError, r"unknown environment 'Glimpse/Shape-v0'; expected one of Glimpse/"),
        ({"agent": "clever"}, ValueError, r"unknown agent 'clever'; expected one of soft, hard"),
        ({"agent": "soft:nothing.safetensors"}, FileNotFoundError, r"nothing\.safetensors"),
        ({"agent": "agents.base:Nobody"}, ValueError, "no agent class 'Nobody'"),
        ({"split": "dev"}, ValueError, "unknown split 'dev'"),
        ({"spread": -1}, ValueError, "spread must be an integer of at least 0, got -1"),
        ({"captioner": "nothing"}, FileNotFoundError, "no captioner 'nothing'"),
        ({"decode": "best"}, ValueError, "unknown decoding 'best'; expected one of greedy, sample, top-k, top-p, beam"),
        ({"decode": "top-p", "top_p": 0.0}, ValueError, r"top_p .*0\.0"),
        ({"decode": "top-k", "top_k": 0}, ValueError, "top_k .*0"),
        ({"decode": "top-k", "top_k": 1000}, ValueError, "top_k 1000 is beyond the vocabulary"),
        ({"decode": "sample", "temperature": -1.0}, ValueError, r"temperature .*-1\.0"),
        ({"decode": "beam", "beam_width": 0}, ValueError, "beam width .*0"),
        ({"decode": "beam", "beam_width": 1000}, ValueError, "beam width 1000 is beyond the vocabulary"),
        ({"decode": "beam", "block_ngram": -1}, ValueError, "block_ngram .*-1"),
        ({"decode": "beam", "length_normalisation": -0.5}, ValueError, r"length_normalisation .*-0\.5"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(options, change, error, message):
    with pytest.raises(error, match=message):
        main(Options(**{"agent": "center", **options, **change}))
    assert not options["json"].exists()


def test_attention_of_another_captioner_is_named(options, tmp_path):
    path = tmp_path / "other.safetensors"
    save_attention(AdditiveAttention(AttentionConfig(3, 4, 5)), path)
    with pytest.raises(ValueError, match=r"other\.safetensors.*trained with another captioner"):
        main(Options(agent=f"soft:{path}", **options))


def test_options_are_read_from_the_command_line(tmp_path):
    line = f"--env Glimpse/Coco-v0 --split test --agent hard --decode top-p --limit 3 --spread 4 --json {tmp_path}"
    options = tyro.cli(Options, args=line.split())
    assert options == Options(
        env="Glimpse/Coco-v0", split="test", agent="hard", decode="top-p", limit=3, spread=4, json=tmp_path
    )
    line = "--decode beam --beam-width 5 --length-normalisation 0.7 --block-ngram 3"
    assert tyro.cli(Options, args=line.split()).decoding == BeamSearch(5, 0.7, 3)


def command(*arguments):
    line = [sys.executable, "-m", "train.evaluate", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


def test_help():
    result = command("--help")
    assert result.returncode == 0, result.stderr
    for option in (
        "seed device threads limit data-root env split agent decode temperature top-k top-p beam-width "
        "length-normalisation block-ngram stochastic coco captions against json"
    ).split():
        assert f"--{option}" in result.stdout


def test_the_command_searches_with_a_beam(options, attention_file):
    line = ["--agent", f"soft:{attention_file}", "--captioner", options["captioner"], "--limit", 2]
    done = command(*line, "--decode", "beam", "--beam-width", 2, "--json", options["json"])
    assert done.returncode == 0, done.stderr
    assert "beam, 2 images" in done.stdout
    assert json.loads(options["json"].read_text())["decoding"]["width"] == 2


def test_the_command_compares_the_glimpses_with_soft_attention(options):
    done = command("--agent", "hard", "--limit", 3, "--threads", 1, "--json", options["json"])
    assert done.returncode == 0, done.stderr
    metrics = json.loads(options["json"].read_text())["looking"]
    assert metrics["grounding"] > 0.9
    assert metrics["agreement"] > 0.9
    line = next(line for line in done.stdout.splitlines() if line.startswith("looking"))
    assert line == "looking  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def test_the_command_fails_when_the_work_was_not_done(options):
    done = command("--agent", "clever", "--captioner", options["captioner"], "--json", options["json"])
    assert done.returncode != 0
    assert "unknown agent 'clever'" in done.stderr
    assert not options["json"].exists()
