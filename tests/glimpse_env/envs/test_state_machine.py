"""Any order of calls: the single and the vector environment do what ``reference_env`` does, and wrong calls do nothing.

python -m pytest tests/glimpse_env/envs/test_state_machine.py --hypothesis-profile=soak    # longer; `make soak`
"""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.error import Error, InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule, run_state_machine_as_test

from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.models.captioner import save_captioner
from glimpse_env.rendering.frames import render_frame, render_text
from tests.conftest import build_captioner, same
from tests.reference_env import ReferenceEnv, step_in_vector

L, IMAGES = 49, 1_000
NEAR_TIE = 1e-4  # a choice of words as close as this may fall otherwise by rounding alone

locations = st.integers(0, L - 1)
weights = st.lists(st.tuples(locations, st.sampled_from([0.25, 0.5, 1.0])), max_size=3).map(
    lambda some: np.array([dict(some).get(location, 0.0) for location in range(L)], np.float32)
)
seeds = st.integers(0, 5)
rows = st.integers(0, 7)
bad_locations = st.sampled_from([L, -1, 2.5, True, None, "here", [1, 2], [[1]], np.nan])
bad_weights = st.sampled_from(
    [np.full(L, -1.0), np.full(L, np.nan), np.full(L, 2.0), np.ones(L - 1), 1.0, None, "here", [[1.0], [1.0, 2.0]]]
)
options = st.fixed_dictionaries(
    {
        "observe": st.sampled_from(["index", "features", "glimpsed"]),
        "shaped": st.booleans(),
        "decoding": st.sampled_from(["greedy", "sample"]),
        "max_caption_length": st.sampled_from([1, 3, 6]),
        "render_mode": st.sampled_from([None, "ansi", "rgb_array"]),
        "captioner": st.sampled_from(["mean", "zeros"]),
    }
)


@functools.cache
def captioner_file(init):
    """The tiny captioner as a file, so that all environments here share its features; and one that keeps them."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "captioner.safetensors"
    save_captioner(build_captioner(init), path)
    return SimpleNamespace(path=path, folder=folder, keeper=GlimpseEnv(split="val", captioner=path))


def kwargs_of(config):
    return {**config, "split": "val", "captioner": captioner_file(config["captioner"]).path}


def reference_of(env, config):
    names = ("attention", "observe", "shaped", "decoding")
    kwargs = {name: config[name] for name in names}
    return ReferenceEnv(env.captioner, env.dataset, env.features, **kwargs, longest=config["max_caption_length"])


def picture_of(reference, env):
    """The frame of an episode, drawn from what the reference says happened."""
    grid, hard = (7, 7), reference.attention == "hard"
    last = reference.glimpses[-1] if reference.glimpses else None
    earned = sum(reference.rewards) if reference.rewards and (reference.shaped or reference.ended) else None
    shared = {"weights": last, "words": reference.caption(), "reward": earned}
    if env.render_mode == "ansi":
        return render_text(env.dataset.image_id(reference.row), grid, **shared, ended=reference.ended)
    trail = [int(past.argmax()) for past in reference.glimpses[:-1]] if hard else []
    return render_frame(env.dataset.image(reference.row), grid, **shared, trail=trail)


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, str):
            assert actual[name] == value
        else:
            np.testing.assert_allclose(actual[name], value, rtol=1e-9, atol=2e-5, err_msg=name)


def scribble(arrays):
    """What was returned is the caller's own: writing on it changes nothing."""
    for array in arrays.values():
        if isinstance(array, np.ndarray) and array.dtype != object:
            array[...] = 77 if array.dtype != bool else ~array


def clone(env, how):
    return copy.deepcopy(env) if how == "deepcopy" else pickle.loads(pickle.dumps(env))


class SingleEnv(RuleBasedStateMachine):
    """GlimpseEnv."""

    attention = "hard"
    states = Bundle("states")

    @initialize(config=options)
    def make(self, config):
        self.config = config = {**config, "attention": self.attention}
        self.env = GlimpseEnv(**kwargs_of(config))
        self.reference = reference_of(self.env, config)

    def refused(self, error, call, *arguments, **named):
        before = self.env.get_state() if self.started else None
        with pytest.raises(error):
            call(*arguments, **named)
        if self.started:
            assert same(self.env.get_state(), before)

    @property
    def started(self):
        return self.reference.row is not None

    def check(self, observation, info=None):
        assume(self.reference.margin > NEAR_TIE)
        assert self.env.observation_space.contains(observation)
        assert_close(observation, self.reference.observation())
        scribble(observation)
        if info is not None:
            assert_close(info, self.reference.info())
            scribble(info)

    @rule(seed=st.none() | seeds, row=st.none() | rows)
    def reset(self, seed, row):
        if self.reference.generator is None and seed is None:
            seed = 0
        self.reference.reset(seed, row)
        self.check(*self.env.reset(seed=seed, options=None if row is None else {"image": row}))

    @rule(data=st.data(), times=st.integers(1, 4))
    def step(self, data, times=1):
        for _ in range(times):
            self.step_once(data)

    @rule(data=st.data(), seed=seeds, times=st.integers(1, 4))
    def reset_and_step(self, data, seed, times):
        self.reset(seed, None)
        self.step(data, times)

    def step_once(self, data):
        action = data.draw(locations if self.config["attention"] == "hard" else weights)
        if not self.started or self.reference.ended:
            return self.refused(ResetNeeded, self.env.step, action)
        self.reference.step(action)
        argument = copy.copy(action)
        observation, reward, terminated, truncated, info = self.env.step(argument)
        if isinstance(argument, np.ndarray):
            argument[...] = 0.5  # the caller's own, too
        self.check(observation, info)
        assert type(reward) is float
        assert reward == pytest.approx(self.reference.rewards[-1], abs=1e-9)
        assert terminated is self.reference.ended
        assert truncated is False

    @rule(data=st.data())
    def step_wrongly(self, data):
        action = data.draw(bad_locations if self.config["attention"] == "hard" else bad_weights)
        going = self.started and not self.reference.ended
        self.refused(InvalidAction if going else ResetNeeded, self.env.step, action)

    @rule(
        arguments=st.sampled_from(
            [
                {"options": {"image": IMAGES}},
                {"options": {"image": -1}},
                {"options": {"image": True}},
                {"options": {"picture": 1}},
                {"options": {"image": IMAGES}, "seed": 3},
                {"seed": -1},
                {"seed": "three"},
            ]
        )
    )
    def reset_wrongly(self, arguments):
        self.refused((ValueError, Error), self.env.reset, **arguments)

    @rule(target=states)
    def get_state(self):
        if not self.started:
            self.refused(ResetNeeded, self.env.get_state)
            return multiple()
        return self.env.get_state(), self.reference.copied()

    @rule(state=states, twin=st.booleans(), data=st.data())
    def set_state(self, state, twin, data):
        if twin:  # of one made alike
            self.env = GlimpseEnv(**kwargs_of(self.config))
        theirs, ours = state
        self.reference = ours.copied()
        self.check(self.env.set_state(theirs))
        self.render()
        self.step(data)

    @rule(change=st.sampled_from(["attention", "shaped", "max_caption_length"]))
    def set_state_of_another(self, change):
        others = {"attention": {"hard": "soft", "soft": "hard"}, "shaped": {True: False, False: True}}
        value = others.get(change, {}).get(self.config[change], 9)
        changed = GlimpseEnv(**kwargs_of({**self.config, change: value}))
        changed.reset(seed=0)
        self.refused(ValueError, self.env.set_state, changed.get_state())

    @rule()
    def render(self):
        if self.env.render_mode is None:
            assert self.env.render() is None
        elif not self.started:
            self.refused(ResetNeeded, self.env.render)
        else:
            before = self.env.get_state()
            frame = self.env.render()
            assert same(frame, picture_of(self.reference, self.env))
            assert same(self.env.get_state(), before)

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def go_on_as_a_copy(self, how):
        self.env = clone(self.env, how)

    @rule()
    def close(self):
        """Closing shuts a window and ends no episode; as in Gymnasium, to close again does nothing."""
        before = self.env.get_state() if self.started else None
        assert self.env.close() is None
        if self.started:
            assert same(self.env.get_state(), before)


class VectorEnv(RuleBasedStateMachine):
    """GlimpseVectorEnv."""

    attention, mode = "hard", AutoresetMode.NEXT_STEP
    states = Bundle("states")

    @initialize(config=options, count=st.integers(1, 3))
    def make(self, config, count):
        self.config, self.count = {**config, "attention": self.attention}, count
        self.env = self.build()
        self.references = [reference_of(self.env, self.config) for _ in range(count)]

    def build(self, count=None, **changed):
        kwargs = kwargs_of({**self.config, **changed})
        return GlimpseVectorEnv(count or self.count, autoreset_mode=self.mode, **kwargs)

    def refused(self, error, call, *arguments, **named):
        before = self.env.get_state()
        with pytest.raises(error):
            call(*arguments, **named)
        assert same(self.env.get_state(), before)

    @property
    def waiting(self):
        """Whether an environment must be reset before the next step."""
        ended = self.mode == AutoresetMode.DISABLED
        return any(reference.row is None or (ended and reference.ended) for reference in self.references)

    @property
    def known(self):
        return [slot for slot, reference in enumerate(self.references) if reference.row is not None]

    def check(self, observation, infos=None, reported=()):
        """Compare what is seen of all that have been reset, and what was told of the environments ``told``."""
        assume(all(reference.margin > NEAR_TIE for reference in self.references))
        for slot in self.known:
            assert_close(
                {name: array[slot] for name, array in observation.items()}, self.references[slot].observation()
            )
        for slot in range(self.count) if infos is not None else ():
            expected = self.references[slot].info() if slot in reported else {}
            assert_close(self.info_of(infos, slot), expected)
        scribble(observation)
        scribble(infos or {})

    @staticmethod
    def info_of(infos, slot):
        """What Gymnasium's vector form says of one environment, but for what was final."""
        names = [name for name in infos if not name.startswith("_") and not name.startswith("final_")]
        return {name: infos[name][slot] for name in names if infos[f"_{name}"][slot]}

    @rule(data=st.data())
    def reset(self, data):
        mask = data.draw(st.none() | st.lists(st.booleans(), min_size=self.count, max_size=self.count).filter(any))
        row = data.draw(st.none() | rows)
        images = data.draw(st.none() | st.lists(st.none() | rows, min_size=self.count, max_size=self.count))
        seed = data.draw(st.none() | seeds | st.lists(st.none() | seeds, min_size=self.count, max_size=self.count))
        if seed is None and any(reference.generator is None for reference in self.references):
            seed = 1
        seeds_of = [seed + slot for slot in range(self.count)] if isinstance(seed, int) else seed or [None] * self.count
        if isinstance(seed, list):  # what nobody seeded has no seed to be known by
            pairs = zip(seed, self.references, strict=True)
            seed = seeds_of = [
                7 if env_seed is None and reference.generator is None else env_seed for env_seed, reference in pairs
            ]
        arguments = {}
        if mask is not None:
            arguments["reset_mask"] = np.array(mask)
        if row is not None or images is not None:
            arguments["image"] = row if row is not None else images
        images_of = [row] * self.count if row is not None or images is None else images
        reported = [slot for slot in range(self.count) if mask is None or mask[slot]]
        for slot in reported:
            self.references[slot].reset(seeds_of[slot], images_of[slot])
        observation, infos = self.env.reset(seed=seed, options=arguments or None)
        if mask is not None:
            arguments["reset_mask"][...] = True
        self.check(observation, infos, reported)

    @rule(data=st.data(), times=st.integers(1, 4))
    def step(self, data, times=1):
        for _ in range(times):
            self.step_once(data)

    @rule(data=st.data(), times=st.integers(1, 4))
    def reset_and_step(self, data, times):
        while self.waiting:
            self.reset(data)
        self.step(data, times)

    def step_once(self, data):
        action = locations if self.config["attention"] == "hard" else weights
        actions = np.array(data.draw(st.lists(action, min_size=self.count, max_size=self.count)))
        if self.waiting:
            return self.refused(ResetNeeded, self.env.step, actions)
        pairs = zip(self.references, actions, strict=True)
        expected = [step_in_vector(reference, action, self.mode) for reference, action in pairs]
        argument = actions.copy()
        observation, rewards, terminations, truncations, infos = self.env.step(argument)
        argument[...] = 0
        finals = [final for *_, final in expected]
        assert ("final_obs" in infos) == any(final is not None for final in finals)
        for slot, final in enumerate(finals):
            if "final_obs" in infos:
                assert infos["_final_obs"][slot] == infos["_final_info"][slot] == (final is not None)
            if final is not None:
                assert_close(infos["final_obs"][slot], final[0])
                assert_close(self.info_of(infos["final_info"], slot), final[1])
        self.check(observation, infos, range(self.count))
        np.testing.assert_allclose(rewards, [reward for reward, *_ in expected], atol=1e-9)
        assert terminations.tolist() == [ended for _, ended, _ in expected]
        assert truncations.tolist() == [False] * self.count
        for array in (rewards, terminations, truncations):
            array[...] = True

    @rule(data=st.data())
    def step_wrongly(self, data):
        hard = self.config["attention"] == "hard"
        good = 0 if hard else np.ones(L)
        bad = data.draw(st.sampled_from([L, -1, 2.5, None, "here", np.nan]) if hard else bad_weights)
        bad_slot = data.draw(st.integers(0, self.count - 1))
        actions = [bad if slot == bad_slot else good for slot in range(self.count)]
        some = data.draw(st.sampled_from([actions, actions[0], [good] * (self.count + 1), None]))
        self.refused(ResetNeeded if self.waiting else InvalidAction, self.env.step, some)

    @rule(data=st.data())
    def reset_wrongly(self, data):
        wrong = [
            {"options": {"image": IMAGES}},
            {"options": {"image": [0] * (self.count + 1)}},
            {"options": {"image": [0] * (self.count - 1) + [-1]}},
            {"options": {"picture": 1}},
            {"options": {"reset_mask": np.zeros(self.count, bool)}},
            {"options": {"reset_mask": np.ones(self.count)}},
            {"options": {"reset_mask": np.ones(self.count + 1, bool)}},
            {"seed": -1},
            {"seed": [1] * (self.count + 1)},
            {"seed": [1] * (self.count - 1) + [-1]},
        ]
        self.refused(ValueError, self.env.reset, **{"seed": 5, **data.draw(st.sampled_from(wrong))})

    @rule(target=states)
    def get_state(self):
        return self.env.get_state(), [reference.copied() for reference in self.references]

    @rule(state=states, twin=st.booleans(), data=st.data())
    def set_state(self, state, twin, data):
        if twin:
            self.env = self.build()
        theirs, ours = state
        self.references = [reference.copied() for reference in ours]
        self.check(self.env.set_state(theirs))
        self.render()
        self.step(data)

    @rule(change=st.sampled_from(["attention", "shaped", "max_caption_length", "count"]))
    def set_state_of_another(self, change):
        others = {"attention": {"hard": "soft", "soft": "hard"}, "shaped": {True: False, False: True}}
        value = self.count + 1 if change == "count" else others.get(change, {}).get(self.config[change], 9)
        changed_env = self.build(**{change: value})
        changed_env.reset(seed=0)
        self.refused(ValueError, self.env.set_state, changed_env.get_state())

    @rule()
    def render(self):
        if self.env.render_mode is None:
            assert self.env.render() is None
        elif len(self.known) < self.count:
            self.refused(ResetNeeded, self.env.render)
        else:
            before = self.env.get_state()
            frames = self.env.render()
            assert same(frames, tuple(picture_of(reference, self.env) for reference in self.references))
            assert same(self.env.get_state(), before)

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def go_on_as_a_copy(self, how):
        self.env = clone(self.env, how)

    @rule()
    def close(self):
        before = self.env.get_state()
        assert self.env.close() is None
        assert same(self.env.get_state(), before)


# Hypothesis tries neighbours of what it has tried: what must not be left out is a case of its own.
CASES = {
    **{f"Single-{attention}": (SingleEnv, {"attention": attention}) for attention in ("hard", "soft")},
    **{
        f"{mode.value}-{attention}": (VectorEnv, {"attention": attention, "mode": mode})
        for mode in AutoresetMode
        for attention in ("hard", "soft")
    },
}
SETTINGS = settings(max_examples=settings().max_examples // 3, stateful_step_count=40, deadline=None)  # calls of each


@pytest.mark.filterwarnings("ignore:.*render.. was called without a render_mode")
@pytest.mark.parametrize("case", CASES)
def test_any_order_of_calls_does_what_the_reference_does(case):
    machine, attributes = CASES[case]
    run_state_machine_as_test(type(machine.__name__, (machine,), attributes), settings=SETTINGS)
