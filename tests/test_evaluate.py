"""Evaluation as a command, against captions played by hand through the public environment."""

from __future__ import annotations

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import tyro
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu

import glimpse_env  # noqa: F401 (registers the ids)
from agents.attention import AdditiveAttention, AttentionConfig, save_attention
from agents.loading import load_agent
from train.evaluate import BATCH, Options, evaluate, main, measure_spread
from train.scoring import DANGLING

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
    said, references, ended = [], [], []
    for row in range(LIMIT):
        observation, info = env.reset(seed=row, options={"image": row})
        state, start, done, steps = None, np.ones(1, bool), False, 0
        while not done:
            action, state = agent.predict(observation, state, start, deterministic=True)
            observation, _, done, _, info = env.step(action)
            start, steps = np.zeros(1, bool), steps + 1
        words = info["caption"].split()
        said.append(words)
        references.append(env.unwrapped.dataset.references(row))
        ended.append(steps == len(words) + 1)
    env.close()
    return said, references, ended


@pytest.mark.filterwarnings("ignore::UserWarning:nltk")  # of every n-gram order without a match
@pytest.mark.parametrize("kind", ["soft", "hard", "center", "raster", "uniform", "oracle"])
def test_figures_are_those_of_episodes_played_by_hand(options, captioner_file, attention_file, kind):
    name = f"{kind}:{attention_file}" if kind in ("soft", "hard") else kind
    main(Options(agent=name, **options))
    figures = json.loads(options["json"].read_text())
    said, references, ended = play_by_hand(name, captioner_file)
    for order in (1, 2, 3, 4):
        expected = corpus_bleu(references, said, [1 / order] * order)
        assert figures["bleu"][order - 1] == pytest.approx(expected, abs=1e-9)
    smooth = SmoothingFunction().method1
    each = [sentence_bleu(refs, words, smoothing_function=smooth) for refs, words in zip(references, said, strict=True)]
    assert figures["sentence_bleu"] == pytest.approx(np.mean(each))
    bad = [not end or not words or words[-1] in DANGLING for end, words in zip(ended, said, strict=True)]
    assert figures["bad_endings"] == pytest.approx(np.mean(bad))
    closest = [
        min((abs(len(ref) - len(words)), len(ref)) for ref in refs)[1]
        for refs, words in zip(references, said, strict=True)
    ]
    assert figures["length_ratio"] == pytest.approx(sum(map(len, said)) / sum(closest))


def test_the_file_says_what_was_scored(options):
    main(Options(agent="random", split="test", seed=4, **options))
    figures = json.loads(options["json"].read_text())
    said = {name: figures[name] for name in ("agent", "env", "split", "decode", "num_images", "seed", "captioner")}
    assert said == {
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


def test_more_images_than_a_batch_are_captioned_in_order(options):
    scores, captions = evaluate(Options(agent="center", **{**options, "limit": BATCH + 3}))
    assert scores.num_images == BATCH + 3
    assert [caption.row for caption in captions] == list(range(BATCH + 3))
    alone = evaluate(Options(agent="center", **options))[1]
    assert [caption.words for caption in captions[:LIMIT]] == [caption.words for caption in alone]


@pytest.mark.parametrize("decode", ["sample", "top-k", "top-p"])
def test_drawn_words_follow_from_the_seed(options, decode):
    def words(seed):
        return [one.words for one in evaluate(Options(agent="center", decode=decode, seed=seed, **options))[1]]

    assert words(0) == words(0)
    assert words(0) != words(1)


def test_narrow_draws_are_greedy(options):
    greedy = [one.words for one in evaluate(Options(agent="center", **options))[1]]
    for narrow in ({"decode": "top-k", "top_k": 1}, {"decode": "sample", "temperature": 1e-4}):
        assert [one.words for one in evaluate(Options(agent="center", **narrow, **options))[1]] == greedy


def test_a_stochastic_agent_draws_its_glimpses(options, attention_file):
    def looked(**more):
        made = evaluate(Options(agent=f"hard:{attention_file}", **more, **options))[1]
        return [one.looked.argmax(1).tolist() for one in made]

    assert looked() == looked(seed=1)
    assert looked(stochastic=True) == looked(stochastic=True)
    assert looked(stochastic=True) != looked(stochastic=True, seed=1)


def test_spread(options):
    one = measure_spread(Options(spread=1, **options))
    assert one.best == one.random
    three = measure_spread(Options(spread=3, **options))
    each = [measure_spread(Options(spread=1, seed=seed, **options)).random for seed in range(3)]
    assert three.random == pytest.approx(np.mean(each))
    assert max(each) <= three.best <= 1
    assert three.best > three.random
    main(Options(agent="center", spread=3, **options))
    figures = json.loads(options["json"].read_text())["spread"]
    assert figures == {
        "random": three.random,
        "best": three.best,
        "paths": 3,
        "spread": pytest.approx(three.best - three.random),
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"env": "Glimpse/Shape-v0"}, ValueError, r"unknown environment 'Glimpse/Shape-v0'; expected one of Glimpse/"),
        ({"agent": "clever"}, ValueError, r"unknown agent 'clever'; expected one of soft, hard"),
        ({"agent": "soft:nothing.safetensors"}, FileNotFoundError, r"nothing\.safetensors"),
        ({"agent": "agents.base:Nobody"}, ValueError, "no agent class 'Nobody'"),
        ({"split": "dev"}, ValueError, "unknown split 'dev'"),
        ({"captioner": "nothing"}, FileNotFoundError, "no captioner 'nothing'"),
        ({"decode": "beam"}, ValueError, "unknown decoding 'beam'"),
        ({"decode": "top-p", "top_p": 0.0}, ValueError, "top_p"),
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


def command(*arguments):
    line = [sys.executable, "-m", "train.evaluate", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300)


def test_help():
    shown = command("--help")
    assert shown.returncode == 0, shown.stderr
    for option in "seed device threads limit data-root env split agent decode json".split():
        assert f"--{option}" in shown.stdout


def test_the_command_fails_when_the_work_was_not_done(options):
    done = command("--agent", "clever", "--captioner", options["captioner"], "--json", options["json"])
    assert done.returncode != 0
    assert "unknown agent 'clever'" in done.stderr
    assert not options["json"].exists()
