"""The environment keeps Gymnasium's contract and its own: what is seen, earned, refused, replayed and drawn."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from nltk.translate import bleu_score
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from glimpse_env import GlimpseEnv
from glimpse_env.datasets.shapes import Shapes
from glimpse_env.models.captioner import save_captioner, shipped_captioners
from tests.conftest import same

L = 49
ATTENTION, OBSERVE = ("hard", "soft"), ("features", "index", "glimpsed")


@pytest.fixture(scope="module")
def make(captioner):
    """Makes environments with the tiny captioner."""

    def build(**options):
        return GlimpseEnv(**{"split": "val", "captioner": captioner, **options})

    return build


def random_action(env, rng):
    if env.task.attention == "hard":
        return int(rng.integers(L))
    return rng.dirichlet(np.full(L, 0.05)).astype(np.float32)  # flat weights would make every word the same


def rollout(env, seed, actions=None, options=None):
    """One episode: everything reset and step return, and the actions."""
    rng = np.random.default_rng(seed)
    trail = [(*env.reset(seed=seed, options=options), None, None, None)]
    taken, ended = [], False
    while not ended:
        taken.append(random_action(env, rng) if actions is None else actions[len(taken)])
        observation, reward, ended, truncated, info = env.step(taken[-1])
        trail.append((observation, info, reward, ended, truncated))
    return trail, taken


def words_of(trail):
    return [int(observation["word"][0]) for observation, *_ in trail[1:]]


def nltk_bleu(references, words, order=4):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        smooth = bleu_score.SmoothingFunction().method1
        return bleu_score.sentence_bleu(references, words, (1 / order,) * order, smooth)


# --- contracts --------------------------------------------------------------------------------------------------------


def check_both(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a checker's doubt is a failure, but for two tastes of Stable-Baselines3's
        warnings.filterwarnings("ignore", "Your observation features has an unconventional shape")  # (L, D)
        warnings.filterwarnings("ignore", "We recommend you to use a symmetric and normalized Box")  # weights
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped, warn=True)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("observe", OBSERVE)
def test_gymnasium_and_stable_baselines_accept_it(captioner, monkeypatch, attention, observe):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pytest.importorskip("pygame")
    env = gym.make("Glimpse/Shapes-v0", captioner=captioner, attention=attention, observe=observe)
    check_both(env)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("observe", OBSERVE)
def test_gymnasium_and_stable_baselines_accept_flickr8k(flickr8k_root, monkeypatch, attention, observe):
    if "flickr8k" not in shipped_captioners():
        pytest.skip("no captioner is shipped for flickr8k")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pytest.importorskip("pygame")
    options = {"split": "val", "attention": attention, "observe": observe, "data_root": str(flickr8k_root)}
    check_both(gym.make("Glimpse/Flickr8k-v0", **options))


@pytest.mark.parametrize("attention", ATTENTION)
def test_spaces_have_the_documented_parts(make, captioner, attention):
    env = make(attention=attention)
    dim, hidden = captioner.encoder.feature_dim, captioner.decoder.config.hidden_dim
    entries = {name: (space.shape, space.dtype) for name, space in env.observation_space.items()}
    rest = {
        "hidden": ((hidden,), np.float32),
        "word": ((1,), np.int64),
        "glimpses": ((L,), np.float32),
        "time": ((1,), np.float32),
    }
    assert entries == {"features": ((L, dim), np.float32), **rest}
    by_index = make(attention=attention, observe="index").observation_space
    assert {name: (space.shape, space.dtype) for name, space in by_index.items()} == {"image": ((1,), np.int64), **rest}
    expected = gym.spaces.Discrete(L) if attention == "hard" else gym.spaces.Box(0, 1, (L,), np.float32)
    assert env.action_space == expected


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("observe", OBSERVE)
@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_same_seed_same_trajectory(make, attention, observe, decoding):
    options = {"attention": attention, "observe": observe, "decoding": decoding}
    env = make(**options)
    trail, actions = rollout(env, 5)
    rollout(env, 6)
    assert same(rollout(env, 5, actions)[0], trail)
    assert same(rollout(make(**options), 5, actions)[0], trail)


def test_seeds_draw_different_images_and_words(make):
    env = make(decoding="sample")
    rows = [env.reset(seed=seed) and env.row for seed in range(12)]
    assert len(set(rows)) > 8
    captions = {rollout(env, seed, [7] * 20, {"image": 3})[0][-1][1]["caption"] for seed in range(12)}
    assert len(captions) > 6


def test_without_a_seed_the_generator_goes_on(make):
    env = make()
    env.reset(seed=1)
    rows = [env.reset() and env.row for _ in range(60)]
    assert len(set(rows)) > 50
    assert 0 <= min(rows) < 100
    assert 900 <= max(rows) < 1000
    env.reset(seed=1)
    assert [env.reset() and env.row for _ in range(60)] == rows


# --- observations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("observe", OBSERVE)
def test_observations_say_what_happened(make, captioner, attention, observe):
    env = make(attention=attention, observe=observe, decoding="sample", max_caption_length=8)
    for seed in range(6):
        trail, actions = rollout(env, seed)
        attention_sum = np.zeros(L)
        for t, (observation, *_) in enumerate(trail):
            assert env.observation_space.contains(observation)
            if t:
                attention_sum += (
                    np.eye(L)[actions[t - 1]] if attention == "hard" else actions[t - 1] / actions[t - 1].sum()
                )
                assert observation["glimpses"].sum() == pytest.approx(1, abs=1e-5)
            else:
                assert observation["word"].tolist() == [captioner.vocabulary.start]
                assert not observation["hidden"].any()  # this captioner starts from zeros
            np.testing.assert_allclose(observation["glimpses"], attention_sum / max(t, 1), atol=1e-6)
            np.testing.assert_allclose(observation["time"], [t / 8], atol=1e-7)
            table = np.asarray(env.features[env.row], np.float32)
            if observe == "index":
                assert observation["image"].tolist() == [env.row]
                assert "features" not in observation
            elif observe == "features":
                assert np.array_equal(observation["features"], table)
            else:
                glimpsed = observation["features"].any(axis=1)
                assert glimpsed.tolist() == (attention_sum > 0).tolist()
                assert np.array_equal(observation["features"][glimpsed], table[glimpsed])


def test_the_table_is_the_encoders_annotations(make, captioner):
    env = make()
    observation, _ = env.reset(options={"image": 12})
    annotations = captioner.encoder.encode([Shapes("val").image(12)])[0].numpy()
    np.testing.assert_allclose(observation["features"], annotations, atol=2e-3, rtol=2e-3)  # half precision


@pytest.mark.parametrize("observe", OBSERVE)
def test_observations_are_the_callers_own(make, observe):
    env, untouched = make(observe=observe), make(observe=observe)
    actions = list(range(0, 40, 2))
    clean, _ = rollout(untouched, 2, actions)
    env.reset(seed=2)
    for t, action in enumerate(actions[: len(clean) - 1], start=1):
        before, reward, _, _, info = env.step(action)
        assert same((before, info, reward), clean[t][:3])
        for array in (*before.values(), info["action_mask"]):
            assert array.flags.writeable
            array[...] = 0
    assert same(rollout(env, 2, actions)[0], clean)


# --- ends and rewards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("shaped", [False, True])
def test_an_episode_is_a_caption_and_nltk_its_judge(make, captioner, attention, shaped):
    env = make(attention=attention, decoding="sample", max_caption_length=8, shaped=shaped)
    vocabulary, endings = captioner.vocabulary, set()
    for seed in range(40):
        trail, _ = rollout(env, seed, options={"image": seed % 16})
        words = words_of(trail)
        for t, (_, info, reward, ended, truncated) in enumerate(trail[1:], start=1):
            assert ended is (words[t - 1] == vocabulary.end or t == 8)
            assert truncated is False
            assert isinstance(reward, float)
            if not ended:
                assert set(info) == {"action_mask"}
                assert shaped or reward == 0
        for _, info, *_ in trail:
            assert info["action_mask"].dtype == np.int8
            assert info["action_mask"].tolist() == [1] * L
        info, references = trail[-1][1], env.dataset.references(env.row)
        assert set(info) == {"action_mask", "caption", "bleu", "image_id"}
        generated = [vocabulary.words[word] for word in words]
        endings.add(generated[-1] == "<end>")
        plain = [word for word in generated if word != "<end>"]
        assert info["caption"] == " ".join(plain)
        assert info["image_id"] == env.dataset.image_id(env.row)
        assert info["bleu"].shape == (4,)
        assert info["bleu"].dtype == np.float64
        np.testing.assert_allclose(info["bleu"], [nltk_bleu(references, plain, n) for n in (1, 2, 3, 4)], atol=1e-12)
        expected = nltk_bleu([[*reference, "<end>"] for reference in references], generated)
        assert sum(step[2] for step in trail[1:]) == pytest.approx(expected, abs=1e-9)
        assert not {"<pad>", "<start>", "<unk>"} & set(generated)
    assert endings == {True, False}


def test_shaped_rewards_add_up_to_the_terminal_one(make):
    plain, shaped = (make(decoding="sample", shaped=how) for how in (False, True))
    for seed in range(15):
        trail, actions = rollout(plain, seed, options={"image": seed})
        shaped_trail, _ = rollout(shaped, seed, actions, {"image": seed})
        assert words_of(trail) == words_of(shaped_trail)
        assert sum(step[2] for step in shaped_trail[1:]) == pytest.approx(trail[-1][2], abs=1e-9)


def test_a_longer_limit_only_lets_it_talk_on(make):
    for seed in range(5):
        trail, actions = rollout(make(max_caption_length=20), seed)
        short, _ = rollout(make(max_caption_length=5), seed, actions)
        assert words_of(short) == words_of(trail)[:5]


def test_narrow_draws_are_greedy(make):
    for seed in range(4):
        trail, actions = rollout(make(), seed)
        for narrow in (
            {"decoding": "sample", "temperature": 1e-7},
            {"decoding": "top-k", "top_k": 1},
            {"decoding": "top-p", "top_p": 1e-9},
        ):
            assert words_of(rollout(make(**narrow), seed, actions)[0]) == words_of(trail), narrow


# --- actions ----------------------------------------------------------------------------------------------------------


def test_where_it_looks_changes_what_is_said(make):
    env = make()
    captions = {rollout(env, seed, options={"image": 3})[0][-1][1]["caption"] for seed in range(20)}
    assert len(captions) > 10


@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_weights_count_by_their_proportions(make, decoding):
    hard, soft = (make(attention=attention, decoding=decoding) for attention in ATTENTION)
    for seed in range(4):
        trail, locations = rollout(hard, seed)
        one_hot, _ = rollout(soft, seed, [np.eye(L, dtype=np.float32)[location] for location in locations])
        assert words_of(one_hot) == words_of(trail)
        for soft_step, hard_step in zip(one_hot, trail, strict=True):
            np.testing.assert_allclose(soft_step[0]["hidden"], hard_step[0]["hidden"], atol=1e-5)
        trail, weights = rollout(soft, seed)
        for scale in (0.5, 1e-3, 1e-15):
            scaled = [soft_step * np.float32(scale) for soft_step in weights]
            assert words_of(rollout(soft, seed, scaled)[0]) == words_of(trail)
        uniform, _ = rollout(soft, seed, [np.ones(L, np.float32)] * 20)
        assert same(rollout(soft, seed, [np.zeros(L, np.float32)] * 20)[0], uniform)
        assert words_of(rollout(soft, seed, [np.full(L, 1 / L, np.float32)] * 20)[0]) == words_of(uniform)
        np.testing.assert_allclose(uniform[1][0]["glimpses"], 1 / L, rtol=1e-6)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.int32, np.array, lambda n: np.array([n])])
def test_any_integer_is_a_location(make, kind):
    env = make()
    expected = words_of(rollout(env, 1, [9] * 20)[0])
    assert words_of(rollout(env, 1, [kind(9)] * 20)[0]) == expected


@pytest.mark.parametrize("kind", [list, tuple, np.float64, lambda w: w.astype(np.float16)])
def test_any_real_numbers_are_weights(make, kind):
    env = make(attention="soft")
    weights = np.zeros(L, np.float32)
    weights[[3, 30]] = 0.5, 0.25
    expected = words_of(rollout(env, 1, [weights] * 20)[0])
    assert words_of(rollout(env, 1, [kind(weights)] * 20)[0]) == expected


def weights_with(value, location=5):
    weights = np.full(L, 0.5, np.float64)
    weights[location] = value
    return weights


BAD = {
    "hard": [
        (L, "49"),
        (10**30, "1000000000000000000000000000000"),
        (np.uint64(2**63), "9223372036854775808"),
        (-1, "-1"),
        (3.0, r"3\."),
        (np.float32(2.5), r"2\.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1j, r"1\.j"),
        (None, "None"),
        (True, "True"),
        ("3", "'3'"),
        (b"3", "b'3'"),
        ([1, 2], r"\(1, 2\)"),
        ([], r"\[\]"),
        ([[1], [2, 3]], r"\[\[1\], \[2, 3\]\]"),
        ({}, r"\{\}"),
        (np.ones(L, np.float32), r"1\."),
    ],
    "soft": [
        (weights_with(-0.25), r"-0\.25"),
        (weights_with(1.5), r"1\.5"),
        (weights_with(float("nan")), "nan"),
        (weights_with(float("inf")), "inf"),
        (weights_with(-float("inf")), "-inf"),
        (weights_with(1e300), "inf"),  # as float32
        (np.full(L, 0.5j), r"0\.5j"),
        (np.full(L, "0.5"), r"'0\.5'"),
        ([0.5] * (L - 1) + [None], "None"),
        (np.ones(L + 1), "50"),
        (np.ones((L, 1)), "49, 1"),
        (np.ones((1, L)), "1, 49"),
        ([], "0"),
        (3, r"\(1,\)"),
        (None, "None"),
        ("uniform", "uniform"),
        ([[0.5], [0.5, 0.5]], r"\[\[0\.5\], \[0\.5, 0\.5\]\]"),
    ],
}


@pytest.mark.parametrize(
    ("attention", "bad", "named"), [(attention, *case) for attention in ATTENTION for case in BAD[attention]]
)
@pytest.mark.filterwarnings("error")
def test_invalid_actions_are_named_and_change_nothing(make, attention, bad, named):
    env = make(attention=attention, decoding="sample")
    clean, actions = rollout(env, 8)
    assert len(actions) > 3
    env.reset(seed=8)
    trail = [clean[0]]
    for action in actions:
        with pytest.raises(InvalidAction, match=named):
            env.step(bad)
        observation, reward, ended, truncated, info = env.step(action)
        trail.append((observation, info, reward, ended, truncated))
    assert same(trail, clean)


# --- reset ------------------------------------------------------------------------------------------------------------


def test_steps_need_a_reset(make):
    env = make(max_caption_length=2)
    for call in (lambda: env.step(0), env.get_state):
        with pytest.raises(ResetNeeded, match=r"reset\(\)"):
            call()
    rollout(env, 0)
    with pytest.raises(ResetNeeded, match="the caption is complete"):
        env.step(0)
    env.reset()
    env.step(0)


def test_an_image_is_asked_for_by_row(make):
    env = make()
    for row in (0, 7, np.int64(999)):
        observation, _ = env.reset(options={"image": row})
        assert env.row == row
        assert np.array_equal(observation["features"], np.asarray(env.features[int(row)], np.float32))
    env.reset(seed=4, options={})
    drawn = env.row
    env.reset(seed=4, options={"image": None})
    assert env.row == drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": 1000}, r"image 1000 does not exist; .*\[0, 1000\)"),
        ({"image": -1}, "image -1 does not exist"),
        ({"image": 2.0}, r"image 2\.0 does not exist"),
        ({"image": "2"}, "image '2' does not exist"),
        ({"image": True}, "image True does not exist"),
        ({"image": [1]}, r"image \[1\] does not exist"),
        ({"picture": 1}, "unknown reset option 'picture'; the only one is 'image'"),
        ({"image": 1, "seed": 2}, "unknown reset option 'seed'"),
        ({1: 2, "seed": 2}, "unknown reset option 1"),
        (5, "reset options 5 are no dict; expected such as"),
        ([], r"reset options \[\] are no dict"),
    ],
)
def test_bad_options_are_named_and_change_nothing(make, options, message):
    env = make(decoding="sample")
    clean, actions = rollout(env, 3)
    env.reset(seed=3)
    with pytest.raises(ValueError, match=message):
        env.reset(seed=99, options=options)
    assert [env.step(action)[2] for action in actions] == [step[3] for step in clean[1:]]
    again = env.get_state()["episodes"].episodes.words
    assert again[0, : len(actions)].tolist() == words_of(clean)


def test_a_full_pass_sees_every_image_once(make):
    env = make(split="test", max_caption_length=1)
    image_ids = []
    for row in range(len(env.dataset)):
        env.reset(options={"image": row})
        image_ids.append(env.step(0)[4]["image_id"])
    assert image_ids == [f"shapes-test-{row}" for row in range(1000)]


# --- planning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("observe", OBSERVE)
@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_a_state_is_replayed_as_often_as_wanted(make, attention, observe, decoding):
    options = {"attention": attention, "observe": observe, "decoding": decoding, "shaped": True}
    env = make(**options, render_mode="ansi")
    rng = np.random.default_rng(0)
    actions = [random_action(env, rng) for _ in range(20)]
    seed = next(seed for seed in range(50) if len(rollout(env, seed, actions)[0]) > 8)
    observation, _ = env.reset(seed=seed)
    for action in actions[:3]:
        observation, *_ = env.step(action)
    state, picture = env.get_state(), env.render()
    futures = []
    for player in (None, env, env, make(**options, render_mode="ansi")):
        if player is None:
            player = env  # as it would have gone on anyway
        else:
            assert same(player.set_state(state), observation)
            assert player.render() == picture
        actor, future, ended = np.random.default_rng(1), [], False
        while not ended:
            observed = player.step(random_action(player, actor))
            future.append((*observed, player.render()))
            ended = observed[2]
        futures.append(future)
    assert all(same(future, futures[0]) for future in futures[1:])


def test_a_finished_state_is_finished_and_others_are_refused(make):
    env = make(max_caption_length=3)
    env.reset(seed=0)
    start = env.get_state()
    rollout(env, 0)
    state = env.get_state()
    env.set_state(start)
    env.step(1)
    env.set_state(state)
    with pytest.raises(ResetNeeded, match="the caption is complete"):
        env.step(0)
    with pytest.raises(ValueError, match="words of shape"):
        make(max_caption_length=4).set_state(state)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {},
        lambda state: 5,
        lambda state: {**state, "episodes": None},
        lambda state: {**state, "glimpses": 3},
        lambda state: {name: entry for name, entry in state.items() if name != "reward"},
        lambda state: {**state, "generator": {}},
        lambda state: {**state, "generator": {**state["generator"], "bit_generator": "MT19937"}},
        lambda state: {**state, "generator": {**state["generator"], "state": {}}},
        lambda state: {**state, "generator": {**state["generator"], "state": {"state": "x", "inc": 3}}},
        lambda state: {**state, "episodes": state["episodes"]._replace(episodes=None)},
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(make, change):
    env = make(decoding="sample")
    env.reset(seed=1)
    earlier = env.get_state()
    env.step(3)
    before = env.get_state()
    with pytest.raises(ValueError, match="state is not one of get_state: "):
        env.set_state(change(earlier))
    assert same(env.get_state(), before)


def test_a_state_of_a_larger_split_is_refused(make, captioner):
    larger = GlimpseEnv(captioner=captioner, split="train", decoding="sample")
    larger.reset(seed=0, options={"image": 12_000})
    env = make(decoding="sample")
    env.reset(seed=1)
    before = env.get_state()
    with pytest.raises(ValueError, match="state is of images that are not in this split"):
        env.set_state(larger.get_state() | {"glimpses": []})
    assert same(env.get_state(), before)


def test_a_copy_of_an_environment_with_a_window_goes_on_without_it(make, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make(render_mode="human")
    env.reset(seed=0)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert twin.step(3)[1] == twin.step(4)[1]
        twin.close()
    env.close()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copied_environment_goes_on_by_itself(make, clone):
    env = make(decoding="sample", max_caption_length=6)
    actions = [3, 44, 17, 8, 30, 21]
    seed = next(seed for seed in range(50) if len(rollout(env, seed, actions)[0]) == 7)  # the whole length
    env.reset(seed=seed)
    env.step(actions[0])
    twin = clone(env)
    for action in actions[1:]:
        result = env.step(action)
        assert same(result, twin.step(action))
    assert result[2]
    twin.reset(seed=1)
    with pytest.raises(ResetNeeded):
        env.step(0)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
def test_frames_have_one_shape_and_follow_the_episode(make, attention):
    env = make(attention=attention, render_mode="rgb_array", max_caption_length=5)
    rng, frames = np.random.default_rng(0), []
    env.reset(seed=0)
    frames.append(env.render())
    ended = False
    while not ended:
        ended = env.step(random_action(env, rng))[2]
        frames.append(env.render())
    assert {(frame.shape, frame.dtype) for frame in frames} == {(frames[0].shape, np.dtype(np.uint8))}
    assert frames[0].ndim == 3
    assert frames[0].shape[2] == 3
    for before, after in itertools.pairwise(frames):
        assert not np.array_equal(before, after)
    assert np.array_equal(env.render(), frames[-1])


def test_drawing_changes_nothing(make):
    clean, actions = rollout(make(decoding="sample"), 3)
    for mode in ("rgb_array", "ansi"):
        env = make(decoding="sample", render_mode=mode)
        trail = [(*env.reset(seed=3), None, None, None)]
        for action in actions:
            env.render()
            observation, reward, ended, truncated, info = env.step(action)
            trail.append((observation, info, reward, ended, truncated))
        assert same(trail, clean)


def test_text_tells_image_and_caption(make):
    env = make(render_mode="ansi", max_caption_length=4)
    trail, _ = rollout(env, 0)
    text = env.render()
    assert isinstance(text, str)
    assert trail[-1][1]["image_id"] in text
    assert trail[-1][1]["caption"] in text
    env.reset(seed=0)
    assert trail[-1][1]["caption"] not in env.render()


def test_human_mode_shows_a_window_and_closes_twice(make, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    monkeypatch.setitem(GlimpseEnv.metadata, "render_fps", 1000)
    env, drawn = make(render_mode="human", max_caption_length=3), make(render_mode="rgb_array", max_caption_length=3)
    env.close()
    for each_env in (env, drawn):
        each_env.reset(seed=0)
    for action in (4, 5):
        for each_env in (env, drawn):
            each_env.step(action)
        pixels = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        assert np.array_equal(pixels, drawn.render())
    assert env.render() is None
    env.close()
    env.close()
    assert not pygame.display.get_init()
    env.reset(seed=0)
    assert pygame.display.get_init()
    env.close()


def test_render_says_what_it_lacks(make):
    env = make()
    env.reset()
    with pytest.warns(UserWarning, match="without a render_mode"):
        assert env.render() is None
    with pytest.raises(ResetNeeded, match="render"):
        make(render_mode="ansi").render()
    with pytest.raises(ValueError, match="unknown render_mode 'vr'; expected None, human, rgb_array or ansi"):
        make(render_mode="vr")


def test_the_captioner_may_be_a_file(make, captioner, tmp_path):
    path = tmp_path / "captioner.safetensors"
    save_captioner(captioner, path)
    trail, actions = rollout(make(), 4)
    from_file, _ = rollout(make(captioner=path), 4, actions)
    # The file holds half precision: the table and the states differ by that.
    np.testing.assert_allclose(from_file[0][0]["features"], trail[0][0]["features"], atol=0.05)
    np.testing.assert_allclose(from_file[1][0]["hidden"], trail[1][0]["hidden"], atol=0.05)
    again, _ = rollout(make(captioner=str(path)), 4, actions)
    assert same(again, from_file)
    with pytest.raises(FileNotFoundError, match="no captioner 'nowhere'"):
        make(captioner="nowhere")
    with pytest.raises(FileNotFoundError, match="no captioner 'aaa"):
        make(captioner="a" * 5000)
    for named in (7, "", {}):
        with pytest.raises(ValueError, match=f"captioner {named!r} is no name and no path; expected .* shapes"):
            make(captioner=named)
