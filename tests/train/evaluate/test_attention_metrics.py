"""Attention metrics: computed by hand on known scenes, and along replayed captions."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical

import glimpse_env  # noqa: F401 (registers the ids)
from agents.attention import AdditiveAttention, AttentionConfig
from agents.attention_agents import HardAttentionAgent, SoftAttentionAgent
from agents.loading import find_agent, load_agent
from agents.scripted import CenterAgent, UniformAgent
from glimpse_env import GlimpseEnv
from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.datasets.shapes import COLOURS, Shapes
from glimpse_env.rollout.beam_search import Captioned
from glimpse_env.rollout.decode import decode
from train.benchmark import runner as benchmark
from train.benchmark.results import Result, table
from train.captioner.augmentation import Mirrored
from train.evaluate import evaluation as evaluate
from train.evaluate.attention_metrics import (
    AttentionMetrics,
    distinct_locations,
    empty_glimpses,
    grounding,
    measure_attention,
    replay,
    soft_reference,
    weights_entropy,
)
from train.evaluate.scoring import Interval, Scores

L = 49
SCENES = Shapes("val")
AGENTS = {"soft": SoftAttentionAgent, "hard": HardAttentionAgent}


@pytest.fixture(scope="module")
def envs(captioner):
    return {kind: GlimpseEnv(split="val", captioner=captioner, attention=kind) for kind in AGENTS}


@pytest.fixture
def play(envs, attention):
    """Environment, agent and captions of the tiny captioner's first scenes."""

    def played(kind, count=11, *arguments, **options):
        env, agent = envs[kind], AGENTS[kind](attention, envs[kind].features)
        captions = decode(env.captioner, env.features, agent, range(count), *arguments, **options)
        return env, agent, captions

    return played


def captioned(row, words, glimpses, ended=True):
    return Captioned(row, words, ended, np.eye(L, dtype=np.float32)[glimpses], -1.0)


def test_a_word_after_silent_steps_is_grounded_by_its_own_glimpse():
    row, first, second, nothing = two_sizes()
    words = [first.colour, second.colour]
    glimpses = np.eye(L, dtype=np.float32)[[nothing, first.tile, nothing, second.tile]]
    caption = Captioned(row, words, False, glimpses, -1.0, silent_steps=(0, 2))
    assert caption.step_words == ["<blank>", first.colour, "<blank>", second.colour]
    assert grounding([caption], SCENES) == 1
    assert grounding([captioned(row, words, [nothing, first.tile], False)], SCENES) < 1


def two_sizes():
    """A scene whose first two objects are of different sizes, and a tile that shows nothing."""
    for row in range(len(SCENES)):
        first, second, *others = SCENES.objects(row)
        if first.size != second.size and not others:
            return row, first, second, next(t for t in range(L) if t not in (first.tile, second.tile))
    raise AssertionError("no such scene")


ROW, FIRST, SECOND, NOWHERE = two_sizes()
PHRASE = FIRST.noun_phrase  # a, size, colour, shape


# --- what was seen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glimpses", "expected"),
    [
        ("FFFFF", 1),
        ("FNNNN", 1),  # what was seen once may be named later
        ("NFNNN", 1),  # the glimpse a word is said at counts
        ("NNFNN", 2 / 3),
        ("NNNFN", 1 / 3),
        ("NNNNF", 0),  # too late
        ("SSSSS", 0),  # another object
        ("SSSFS", 1 / 3),
        ("NNNNN", 0),
    ],
)
def test_a_word_is_grounded_once_its_object_was_glimpsed(glimpses, expected):
    tiles = {"F": FIRST.tile, "S": SECOND.tile, "N": NOWHERE}
    assert grounding([captioned(ROW, PHRASE, [tiles[look] for look in glimpses])], SCENES) == pytest.approx(expected)


def test_what_the_scene_does_not_have_is_never_grounded():
    absent = next(colour for colour in COLOURS if colour not in (FIRST.colour, SECOND.colour))
    words = [absent if word == FIRST.colour else word for word in PHRASE]
    assert grounding([captioned(ROW, words, [FIRST.tile, SECOND.tile, *[FIRST.tile] * 3])], SCENES) == 2 / 3


def test_any_object_that_a_word_is_true_of_will_do():
    def alike(row):
        first, *others = SCENES.objects(row)
        return next((candidate for candidate in others if candidate.size == first.size), None)

    row = next(row for row in range(len(SCENES)) if alike(row))
    words = SCENES.objects(row)[0].noun_phrase
    assert grounding([captioned(row, words, [alike(row).tile] * 5)], SCENES) == pytest.approx(1 / 3)


def test_every_content_word_counts_alike():
    grounded_caption, unseen = captioned(ROW, PHRASE, [FIRST.tile] * 5), captioned(ROW, [FIRST.shape], [NOWHERE] * 2)
    assert grounding([grounded_caption, unseen], SCENES) == 3 / 4
    assert grounding([captioned(ROW, ["there", "is", "a"], [FIRST.tile] * 4)], SCENES) is None


def test_soft_weights_glimpse_where_they_are_largest():
    weights = np.full((5, L), 0.5 / (L - 1), np.float32)
    weights[:, FIRST.tile] = 0.5
    soft = Captioned(ROW, PHRASE, True, weights, -1.0)
    assert grounding([soft], SCENES) == 1
    assert empty_glimpses([soft], SCENES) == 0
    assert distinct_locations([soft]) == 1
    weights[0, NOWHERE] = 0.6
    assert empty_glimpses([soft], SCENES) == 1 / 5
    assert distinct_locations([soft]) == 2


def test_glimpses_at_nothing_are_counted_over_all_captions():
    captions = [
        captioned(ROW, PHRASE, [FIRST.tile, SECOND.tile, NOWHERE, NOWHERE, FIRST.tile]),
        captioned(ROW, ["a"], [NOWHERE] * 2),
        captioned(ROW, ["a"], [SECOND.tile], ended=False),
    ]
    assert empty_glimpses(captions, SCENES) == 4 / 8
    assert distinct_locations(captions) == pytest.approx((3 + 1 + 1) / 3)


@pytest.mark.parametrize("weights", [np.full(L, 1 / L), np.eye(L)[3], np.arange(L) / sum(range(L))])
def test_entropy_is_the_categoricals(weights):
    probabilities = torch.from_numpy(weights)
    assert weights_entropy(probabilities).item() == pytest.approx(Categorical(probabilities).entropy().item(), abs=1e-9)


# --- captions made again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 125])
@pytest.mark.parametrize("kind", AGENTS)
def test_greedy_words_are_those_the_replay_would_say(kind, batch):
    env = GlimpseEnv(split="val", attention=kind)  # the shipped captioner, whose captions differ in length
    agent = load_agent(kind, env)
    captions = decode(env.captioner, env.features, agent, range(11))
    word_ids, alphas = {caption.row: [] for caption in captions}, {caption.row: [] for caption in captions}
    for step in replay(env.captioner, env.features, captions, kind, batch=batch):
        alpha = agent.alpha(step.observation).numpy()
        for slot in step.alive.nonzero()[0]:
            row = int(step.observation["image"][slot, 0])
            word_ids[row].append(int(step.logits[slot].argmax()))
            alphas[row].append(alpha[slot])
    vocabulary = env.captioner.vocabulary
    assert len({len(caption.glimpses) for caption in captions}) > 1
    for caption in captions:
        ids = [*vocabulary.encode(caption.words), *[vocabulary.end] * caption.ended]
        assert word_ids[caption.row] == ids
        if kind == "soft":
            np.testing.assert_allclose(alphas[caption.row], caption.glimpses, atol=1e-5)
        else:
            assert np.argmax(alphas[caption.row], 1).tolist() == caption.glimpses.argmax(1).tolist()


@pytest.mark.parametrize("decoding", ["beam", "sample"])
@pytest.mark.parametrize("kind", AGENTS)
def test_captions_have_their_probability_again_however_they_were_found(play, kind, decoding):
    env, _, captions = play(kind, 7, decoding, max_caption_length=9)
    vocabulary, total, steps = env.captioner.vocabulary, np.zeros(len(captions)), np.zeros(len(captions), int)
    for step in replay(env.captioner, env.features, captions, kind, max_caption_length=9, batch=3):
        logs = step.logits.log_softmax(-1)
        for slot in step.alive.nonzero()[0]:
            row = int(step.observation["image"][slot, 0])
            ids = [*vocabulary.encode(captions[row].words), vocabulary.end]
            total[row] += logs[slot, ids[steps[row]]].item()
            steps[row] += 1
    assert steps.tolist() == [len(caption.glimpses) for caption in captions]
    np.testing.assert_allclose(total, [caption.log_probability for caption in captions], rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "glimpses", "ended", "message"),
    [
        (["a"], 1, True, r"row 0 has 1 glimpses and 1 words and <end>; expected as many, and at most 20"),
        (["a"], 2, False, r"row 0 has 2 glimpses and 1 words; expected as many"),
        (["a"] * 21, 21, False, r"row 0 has 21 glimpses .* at most 20"),
    ],
)
def test_captions_that_cannot_be_made_again_are_named(envs, words, glimpses, ended, message):
    env = envs["hard"]
    with pytest.raises(ValueError, match=message):
        next(replay(env.captioner, env.features, [captioned(0, words, [0] * glimpses, ended)], "hard"))


def test_no_captions_have_no_steps(envs):
    assert list(replay(envs["hard"].captioner, envs["hard"].features, [], "hard")) == []


# --- how sure, and who agrees -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AGENTS)
def test_entropy_is_that_of_alpha_along_episodes_played_by_hand(kind):
    env = GlimpseEnv(split="val", attention=kind)
    agent, met = load_agent(kind, env), []
    captions = decode(env.captioner, env.features, agent, range(4))
    for row in range(4):
        observation, _ = env.reset(options={"image": row})
        ended = False
        while not ended:
            met.append(Categorical(agent.alpha(observation)[0]).entropy().item())
            observation, _, ended, _, _ = env.step(agent.predict(observation, deterministic=True)[0])
    assert measure_attention(env, agent, captions).entropy == pytest.approx(np.mean(met), abs=1e-5)
    assert np.std(met) > 0.01


@pytest.mark.parametrize("kind", AGENTS)
def test_attention_that_prefers_nothing_has_the_entropy_of_the_grid(envs, attention, kind):
    module = copy.deepcopy(attention)
    module.score.weight.data.zero_()
    env, agent = envs[kind], AGENTS[kind](module, envs[kind].features)
    captions = decode(env.captioner, env.features, agent, range(3))
    assert measure_attention(env, agent, captions).entropy == pytest.approx(np.log(L), abs=1e-6)


@pytest.mark.parametrize(
    ("agent", "expected"), [(UniformAgent(L), np.log(L)), (CenterAgent(LocationGrid((7, 7))), None)]
)
def test_without_alpha_entropy_is_that_of_the_weights_and_nothing_is_known_of_a_location(envs, agent, expected):
    env = envs[agent.attention]
    metrics = measure_attention(env, agent, decode(env.captioner, env.features, agent, range(3)))
    assert metrics.entropy == (None if expected is None else pytest.approx(expected, abs=1e-6))
    assert (metrics.locations, metrics.agreement) == (1, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", AGENTS)
def test_attention_agrees_with_itself_and_less_with_another(play, attention, kind, dtype):
    env, agent, captions = play(kind, dtype=dtype)
    itself = measure_attention(env, agent, captions, SoftAttentionAgent(attention, env.features), dtype).agreement
    assert itself == 1 if dtype == torch.float32 else itself > 0.9  # half precision has ties
    module = AdditiveAttention(AttentionConfig(8, 12, 6))
    assert measure_attention(env, agent, captions, SoftAttentionAgent(module, env.features), dtype).agreement < 0.5


class InTurn(SoftAttentionAgent):
    """Prefers the middle at every second word."""

    def alpha(self, observation):
        words = np.rint(observation["time"][:, 0] * 20).astype(int)
        return torch.eye(L)[np.where(words % 2, 0, 24)]


def test_agreement_is_over_steps(envs, attention):
    env, agent = envs["hard"], CenterAgent(LocationGrid((7, 7)))
    captions = decode(env.captioner, env.features, agent, range(5))
    steps = [len(caption.glimpses) for caption in captions]
    expected = sum((count + 1) // 2 for count in steps) / sum(steps)
    assert measure_attention(env, agent, captions, InTurn(attention)).agreement == pytest.approx(expected)


def test_soft_attention_is_a_reference_for_captioners_of_its_sizes(envs, tmp_path, monkeypatch):
    assert soft_reference(envs["hard"]) is None
    shipped = GlimpseEnv(split="val")
    assert isinstance(soft_reference(shipped), SoftAttentionAgent)
    monkeypatch.setattr("agents.loading.ASSETS", tmp_path)
    assert soft_reference(shipped) is None


def test_without_ground_truth_nothing_is_said_of_it(play):
    env, agent, captions = play("hard", 3)
    view = copy.copy(env)
    view.task = replace(env.task, assets=replace(env.task.assets, dataset=Mirrored(env.dataset)))
    known, unknown = measure_attention(env, agent, captions), measure_attention(view, agent, captions)
    assert known.empty is not None
    assert unknown == known._replace(grounding=None, empty=None)
    assert str(unknown) == f"entropy {known.entropy:.3f}  locations {known.locations:.3f}"


# --- the shipped captioner --------------------------------------------------------------------------------------------


def test_the_shipped_agents_look_where_they_should_and_the_controls_do_not():
    evaluations = {
        name: evaluate.evaluate(evaluate.Options(agent=name, limit=60))
        for name in ("oracle", "soft", "hard", "shuffled", "random")
    }
    looking = {name: evaluation.attention_metrics for name, evaluation in evaluations.items()}
    assert looking["oracle"][:2] == (1, 0)
    assert looking["soft"].agreement == 1
    for name in ("soft", "hard"):
        assert looking[name].grounding > 0.95
        assert looking[name].empty < 0.05
        assert 0 < looking[name].entropy < 1
    for name in ("shuffled", "random"):
        assert looking[name].grounding < 0.4
        assert looking[name].empty > 0.8
        assert looking[name].agreement < 0.2
        assert evaluations[name].scores.bleu[3] < evaluations["hard"].scores.bleu[3] - 0.3
    assert looking["random"].locations > 2 * looking["hard"].locations


def test_shuffled_attention_looks_where_hard_attention_looks_in_the_next_scene():
    env = gym.make("Glimpse/Shapes-v0", split="val", observe="index").unwrapped
    agent = load_agent("shuffled", env)
    captions = decode(env.captioner, env.features, agent, range(30))
    shifted = [
        captioned(caption.row + 1, caption.words, caption.glimpses.argmax(1), caption.ended) for caption in captions
    ]
    assert empty_glimpses(shifted, SCENES) < 0.3 < 0.8 < empty_glimpses(captions, SCENES)
    hard = find_agent("hard", "shapes").make(env, 0)
    assert (
        measure_attention(env, hard, captions).entropy != measure_attention(env, agent, captions).entropy
    )  # of the α it was led by


# --- in the benchmark -------------------------------------------------------------------------------------------------


def test_grounding_is_a_column_where_there_is_ground_truth():
    scores, unsure = Scores([0.5, 0.4, 0.3, 0.2], 0.2, 1.0, 0.0, 1.0, 3), Interval(0.2, 0.1, 0.3)
    metrics = AttentionMetrics(0.1234, 0.5, 0.0, 3.0, None)
    unknown = metrics._replace(grounding=None, empty=None)

    def result(looking):
        return Result(scores, looking, unsure, unsure, None, {}, {}, ["one"])

    assert "grounding" not in table({"one": result(unknown)})
    written = table({"one": result(metrics), "two": result(unknown)}).splitlines()
    assert [written[line].split("|")[-3].strip() for line in (0, 2, 3)] == ["grounding", "0.123", "–"]


def test_the_benchmarks_file_says_how_every_agent_looked(tmp_path):
    benchmark.main(benchmark.Options(agents=["center", "oracle"], limit=3, run_dir=tmp_path))
    agents = json.loads((tmp_path / "results.json").read_text())["agents"]
    assert agents["oracle"]["looking"]["grounding"] == 1
    assert agents["center"]["looking"]["locations"] == 1
    assert "grounding" in (tmp_path / "results.md").read_text()
