"""N captions at once are N single environments, step for step, in every mode of resetting."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import glimpse_env  # noqa: F401 (registers the ids)
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv
from tests.conftest import same
from tests.reference_env import assert_same

N, L = 5, 49
MODES = list(AutoresetMode)


@pytest.fixture
def make(captioner):
    """Makes vectors over the tiny captioner."""

    def build(count=N, mode=AutoresetMode.NEXT_STEP, **options):
        options = {"split": "val", "observe": "index", "captioner": captioner, "max_caption_length": 8, **options}
        return GlimpseVectorEnv(count, autoreset_mode=mode, **options)

    return build


@pytest.fixture
def make_singles(captioner):
    """Makes Gymnasium's own vector of single environments over the tiny captioner."""

    def build(count=N, mode=AutoresetMode.NEXT_STEP, **options):
        options = {"split": "val", "observe": "index", "captioner": captioner, "max_caption_length": 8, **options}
        return SyncVectorEnv([lambda: GlimpseEnv(**options) for _ in range(count)], autoreset_mode=mode)

    return build


def random_actions(rng, attention, count=N):
    if attention == "hard":
        return rng.integers(L, size=count)
    return rng.dirichlet(np.full(L, 0.05), size=count).astype(np.float32)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "soft", "shaped": True},
        {"decoding": "sample", "observe": "glimpsed"},
        {"decoding": "top-p", "attention": "soft", "observe": "features"},
        {"reward": "rouge-l", "shaped": True, "max_caption_length": 3},
    ],
    ids=str,
)
def test_a_vector_is_its_singles(make, make_singles, mode, options):
    vector, singles = make(mode=mode, **options), make_singles(mode=mode, **options)
    assert_same(singles.reset(seed=11), vector.reset(seed=11))
    rng = np.random.default_rng(0)
    ended = np.zeros(N, bool)
    for _ in range(40):
        if mode == AutoresetMode.DISABLED and ended.any():
            arguments = {"seed": 100, "options": {"reset_mask": ended}}
            expected = singles.reset(seed=arguments["seed"], options=dict(arguments["options"]))
            assert_same(expected, vector.reset(**arguments))
        actions = random_actions(rng, options.get("attention", "hard"))
        expected = singles.step(actions)
        assert_same(expected, vector.step(actions))
        ended = expected[2]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_thousands_of_episodes_of_mixed_lengths_are_those_of_the_singles(make, make_singles, mode):
    count = 40
    options = {"decoding": "sample", "max_caption_length": 7}
    vector, singles = make(count, mode, **options), make_singles(count, mode, **options)
    assert_same(singles.reset(seed=3), vector.reset(seed=3))
    rng = np.random.default_rng(4)
    lengths, ended = [], np.zeros(count, bool)
    while len(lengths) < 1_700:  # 5,100 in all modes
        if mode == AutoresetMode.DISABLED and ended.any():
            expected = singles.reset(options={"reset_mask": ended})
            assert_same(expected, vector.reset(options={"reset_mask": ended}))
        actions = rng.integers(L, size=count)
        expected = singles.step(actions)
        assert_same(expected, vector.step(actions))
        ended = expected[2]
        infos = expected[4].get("final_info", expected[4])
        lengths += [len(infos["caption"][slot].split()) for slot in ended.nonzero()[0]]
    assert len(set(lengths)) >= 6  # captions of 1 to 7 words


def test_it_is_what_make_vec_makes(captioner_file):
    env = gym.make_vec(
        "Glimpse/Shapes-v0", num_envs=3, captioner=str(captioner_file), split="val", autoreset_mode="SameStep"
    )
    assert isinstance(env, GlimpseVectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    observation, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert all(env.single_observation_space.contains({k: v[i] for k, v in observation.items()}) for i in range(3))


def test_nothing_that_is_returned_is_used_again(make):
    env = make()
    first, _ = env.reset(seed=0)
    original = {name: array.copy() for name, array in first.items()}
    stepped = env.step(np.zeros(N, np.int64))
    flags = [array.copy() for array in stepped[1:4]]
    for _ in range(12):
        env.step(np.ones(N, np.int64))
    assert all(np.array_equal(first[name], original[name]) for name in original)
    assert all(np.array_equal(result, flag) for result, flag in zip(stepped[1:4], flags, strict=True))


@pytest.mark.parametrize(
    "seeds", [7, np.array(7), [7, 8, 9, 10, 11], np.arange(7, 12), [7, None, np.int64(9), None, 11]], ids=repr
)
def test_seeds(make, seeds):
    reference, env = make(decoding="sample"), make(decoding="sample")
    reference.reset(seed=7)
    expected, _ = reference.reset(seed=7)
    observation, _ = env.reset(seed=seeds)
    known = [True] * N if np.ndim(seeds) == 0 else [seed is not None for seed in seeds]
    assert np.array_equal(observation["image"][known], expected["image"][known])


def test_a_full_pass_in_rows(make):
    env = make(max_caption_length=1)
    rows = np.arange(3, 3 + N)
    observation, _ = env.reset(options={"image": rows})
    assert observation["image"][:, 0].tolist() == rows.tolist()
    *_, infos = env.step(np.zeros(N, np.int64))
    assert infos["image_id"].tolist() == [env.dataset.image_id(int(row)) for row in rows]
    observation, _ = env.reset(options={"image": 4})
    assert observation["image"][:, 0].tolist() == [4] * N


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.value)  # those that reset by themselves
def test_a_state_is_gone_back_to_as_often_as_wanted(make, mode):
    env = make(mode=mode, decoding="sample", shaped=True)
    env.reset(seed=3)
    rng = np.random.default_rng(1)
    env.step(random_actions(rng, "hard"))
    state = env.get_state()
    actions = [random_actions(rng, "hard") for _ in range(3)]
    first = [env.step(action) for action in actions]
    for _ in range(2):
        env.set_state(state)
        for expected, action in zip(first, actions, strict=True):
            assert_same(expected, env.step(action))


def test_frames_of_every_environment(make):
    env = make(count=2, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    env.step(np.array([0, 30]))
    after = env.render()
    assert len(before) == len(after) == 2
    assert all(frame.dtype == np.uint8 and frame.shape == before[0].shape for frame in (*before, *after))
    assert not np.array_equal(before[1], after[1])
    words = make(count=2, render_mode="ansi")
    words.reset(seed=0)
    assert all(isinstance(text, str) for text in words.render())
    assert make().render() is None


def test_frames_need_resets(make):
    env = make(count=2, render_mode="ansi")
    with pytest.raises(ResetNeeded, match="environment 0 must be reset before render"):
        env.render()
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded, match="environment 1 must be reset before render"):
        env.render()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(N - 1, np.int64), r"expected one location per episode, shape \(5,\), got \(4,\)"),
        (np.array([0, 1, 49, 0, 0]), "location 49 of episode 2 does not exist"),
        (np.array([0, -1, 4, 0, 0]), "location -1 of episode 1 does not exist"),
        (np.zeros(N), "is not a location"),
        ("look", "is not a location"),
    ],
)
def test_bad_actions_are_named_and_change_nothing(make, actions, message):
    env = make(decoding="sample")
    env.reset(seed=0)
    env.step(np.zeros(N, np.int64))
    before = env.get_state()
    with pytest.raises(InvalidAction, match=message):
        env.step(actions)
    assert same(env.get_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": [1, 2]}, "expected one seed for each of 5 environments, got 2"),
        ({"seed": 5.5}, "5.5 is no seed; expected integers of at least 0, or None"),
        ({"seed": -3}, "-3 is no seed"),
        ({"seed": [1, 2, 3, 4, "5"]}, "'5' is no seed"),
        ({"seed": np.linspace(1, 2, 5)}, "1.0 is no seed"),
        ({"options": {"reset_mask": np.ones(4, bool)}}, r"reset_mask must be bool of shape \(5,\).*got bool.*\(4,\)"),
        ({"options": {"reset_mask": np.ones(5)}}, "reset_mask must be bool .* got float64"),
        ({"options": {"reset_mask": np.zeros(5, bool)}}, "at least one True"),
        ({"options": {"image": [1, 2]}}, "image must be one row, or one for each of 5 environments, got 2"),
        ({"options": {"image": [0, 1, 2, 3, 10**6]}}, "image 1000000 does not exist"),
        ({"options": {"image": -1}}, "image -1 does not exist"),
        ({"options": {"picture": 1}}, "unknown reset option 'picture'"),
        ({"options": 5}, "reset options 5 are no dict; expected such as"),
    ],
    ids=str,
)
def test_bad_resets_are_named_and_change_nothing(make, arguments, message):
    env = make()
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ValueError, match=message):
        env.reset(**{"seed": 5, **arguments})
    assert same(env.get_state(), before)


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "4"])
def test_a_bad_number_of_environments_is_named(make, count):
    with pytest.raises(ValueError, match=f"num_envs must be an integer of at least 1, got {count!r}"):
        make(count)


@pytest.mark.parametrize("count", [10**9, 10**18, 10**400], ids=["9", "18", "400"])
def test_more_environments_than_memory_holds_are_refused(make, count):
    with pytest.raises(ValueError, match=r"num_envs=10+ asks for more memory than there is .*make fewer environments"):
        make(count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "state is not one of get_state: its 'episodes' is missing"),
        (lambda state: 5, "state is not one of get_state: it is 5"),
        (lambda state: {**state, "started": 1}, "state is not one of get_state: its 'started' is 1"),
        (lambda state: {**state, "rewards": []}, f"state is of 0 environments, expected {N}"),
        (lambda state: {**state, "generators": [1] * N}, "state is not one of get_state: 1 is no state of a generator"),
        (
            lambda state: {**state, "generators": [*state["generators"][1:], {**state["generators"][0], "state": {}}]},
            "state is not one of get_state: .* is no state of a generator",
        ),
        (
            lambda state: {**state, "episodes": state["episodes"]._replace(episodes=None)},
            "state is not one of get_state: None are no episodes",
        ),
    ],
)
def test_what_is_no_state_is_refused_and_changes_nothing(make, change, message):
    env = make(decoding="sample")
    env.reset(seed=0)
    earlier = env.get_state()
    env.step(np.zeros(N, np.int64))
    before = env.get_state()
    with pytest.raises(ValueError, match=message):
        env.set_state(change(earlier))
    assert same(env.get_state(), before)


def test_other_bad_arguments_are_named(make):
    with pytest.raises(ValueError, match="unknown autoreset_mode 'Never'; expected one of 'NextStep'"):
        make(mode="Never")
    with pytest.raises(ValueError, match="unknown render_mode 'human' of a vector"):
        make(render_mode="human")


def test_steps_need_resets(make):
    env = make(mode=AutoresetMode.DISABLED, max_caption_length=1)
    with pytest.raises(ResetNeeded, match="environment 0 must be reset"):
        env.step(np.zeros(N, np.int64))
    env.reset(options={"reset_mask": np.array([True, True, False, True, True])})
    with pytest.raises(ResetNeeded, match="environment 2 must be reset"):
        env.step(np.zeros(N, np.int64))
    env.reset()
    env.step(np.zeros(N, np.int64))
    with pytest.raises(ResetNeeded, match="environment 0 must be reset"):
        env.step(np.zeros(N, np.int64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_same_happens(make):
    on_cpu, on_gpu = make(), make(device="cuda")
    assert_same(on_cpu.reset(seed=2), on_gpu.reset(seed=2))
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = rng.integers(L, size=N)
        assert_same(on_cpu.step(actions), on_gpu.step(actions))
