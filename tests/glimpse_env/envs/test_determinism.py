"""The same seed is the same trajectory: in every process, after every copy, with one thread or two, for agents, too."""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import find_agent, load_agent
from tests.reference_env import assert_same

STEPS, N = 40, 3
VARIANTS = {
    "hard": {"observe": "features"},
    "hard, words drawn": {"decoding": "sample", "observe": "index"},
    "soft": {"attention": "soft", "shaped": True, "observe": "glimpsed"},
    "soft, words drawn": {"attention": "soft", "shaped": True, "decoding": "top-p", "observe": "index"},
}
AGENTS = ("soft", "hard", "reinforce", "ppo", "random", "oracle")  # no-attention, center, … have nothing to draw


def make_single(variant):
    return gym.make("glimpse_env:Glimpse/Shapes-v0", split="val", **VARIANTS[variant]).unwrapped


def make_vector(variant, mode="SameStep"):
    return gym.make_vec("glimpse_env:Glimpse/Shapes-v0", N, split="val", autoreset_mode=mode, **VARIANTS[variant])


def action_of(rng, variant, count=None):
    if "soft" not in variant:
        return rng.integers(49, size=count)
    return rng.dirichlet(np.full(49, 0.1), size=count).astype(np.float32)


def walk(env, variant, seed, steps=STEPS, rng=None):
    """All that an environment returns in so many steps; a single one is reset when its caption is complete."""
    vector = hasattr(env, "num_envs")
    rng = np.random.default_rng(seed) if rng is None else rng
    trail = [] if seed is None else [env.reset(seed=seed)]
    ended = False
    for _ in range(steps):
        if ended:
            trail.append(env.reset())
        trail.append(env.step(action_of(rng, variant, N if vector else None)))
        ended = not vector and trail[-1][2]
    return trail


def play(agent_name, seed):
    """Episodes of a shipped agent: it draws locations, the environment images."""
    spec = find_agent(agent_name, "shapes")
    captioner = {} if spec.captioner is None else {"captioner": spec.captioner}
    env = gym.make("glimpse_env:Glimpse/Shapes-v0", split="val", attention=spec.attention, **captioner).unwrapped
    agent, trail = load_agent(agent_name, env, seed), []
    for episode in range(3):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        ended, state = False, None
        while not ended:
            action, state = agent.predict(observation, state, np.array([ended]), deterministic=False)
            observation, reward, ended, _, info = env.step(action)
            trail.append((action, observation, reward, ended, info))
    return trail


def values(nested):
    """The leaves of nested structures, in a fixed order."""
    if isinstance(nested, dict):
        for name in sorted(nested):
            yield name
            yield from values(nested[name])
    elif isinstance(nested, (list, tuple)) or (isinstance(nested, np.ndarray) and nested.dtype == object):
        for entry in nested:
            yield from values(entry)
    else:
        yield nested


def digest(trail):
    """Every bit of a trajectory."""
    sha256 = hashlib.sha256()
    for leaf in values(trail):
        sha256.update(leaf.encode() if isinstance(leaf, str) else repr(leaf).encode() if leaf is None else b"")
        if not isinstance(leaf, str) and leaf is not None:
            array = np.asarray(leaf)
            sha256.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return sha256.hexdigest()


def all_digests():
    """Of the single and the vector environment in every way, and of the agents."""
    torch.set_num_threads(1)
    digests = {f"single, {variant}": digest(walk(make_single(variant), variant, 5)) for variant in VARIANTS}
    digests |= {f"vector, {variant}": digest(walk(make_vector(variant), variant, 5)) for variant in VARIANTS}
    return digests | {f"agent {name}": digest(play(name, 5)) for name in AGENTS}


def send_all_digests(results):
    results.put(all_digests())


@pytest.fixture(scope="module")
def digests():
    return all_digests()


def test_another_seed_is_another_trajectory(digests):
    for variant in VARIANTS:
        assert digest(walk(make_single(variant), variant, 6)) != digests[f"single, {variant}"]
        assert digest(walk(make_vector(variant), variant, 6)) != digests[f"vector, {variant}"]
    for name in AGENTS:
        assert digest(play(name, 6)) != digests[f"agent {name}"]


def test_again_in_one_process_it_is_the_same(digests):
    torch.manual_seed(123)  # no global generator has a part in it
    np.random.seed(123)  # noqa: NPY002
    assert all_digests() == digests


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_in_another_process_it_is_the_same(digests, method):
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=send_all_digests, args=(results,))
    process.start()
    remote = results.get(timeout=240)
    process.join(60)
    assert process.exitcode == 0
    assert remote == digests


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [make_single, make_vector])
def test_a_copy_goes_on_as_the_original_does(make, variant, how):
    env, rng = make(variant), np.random.default_rng(2)
    walk(env, variant, 2, 4, rng)
    twin = copy.deepcopy(env) if how == "deepcopy" else pickle.loads(pickle.dumps(env))
    ours, theirs = (copy.deepcopy(rng) for _ in range(2))
    assert digest(walk(twin, variant, None, 8, ours)) == digest(
        walk(env, variant, None, 8, theirs)
    )  # captions are longer


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vector_goes_through_what_its_singles_go_through(variant):
    vector, singles = make_vector(variant, "Disabled"), [make_single(variant) for _ in range(N)]
    rng = np.random.default_rng(1)
    observation, _ = vector.reset(seed=4)
    for slot, env in enumerate(singles):
        assert_same(env.reset(seed=4 + slot)[0], {name: array[slot] for name, array in observation.items()})
    for _ in range(8):
        actions = action_of(rng, variant, N)
        observation, rewards, *_ = vector.step(actions)
        for slot, env in enumerate(singles):
            alone, reward, *_ = env.step(actions[slot])
            assert_same(alone, {name: array[slot] for name, array in observation.items()})
            assert reward == pytest.approx(rewards[slot], abs=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [make_single, make_vector])
def test_threads_change_no_word_and_no_reward(make, variant):
    """Products may be summed in another order; images, words and rewards are the same, numbers to rounding."""
    before = torch.get_num_threads()
    try:
        trails = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            trails.append(walk(make(variant), variant, 5))
    finally:
        torch.set_num_threads(before)
    assert_same(*trails)
