"""A world of strips on a grid of one axis, with fewer locations in some rows (see tests/toy_world.py)."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction
from gymnasium.utils.env_checker import check_env

import glimpse_env
from glimpse_env.metrics.edit_distance import edit_distance
from glimpse_env.models.captioner import save_captioner
from glimpse_env.models.encoders.cnn import EncoderConfig
from tests.conftest import FEATURES, build_captioner, same
from tests.toy_world import CELL, CELLS, COLOURS, GROUNDED, STRIPS, Strips, spec

IDS = [STRIPS.env_id, GROUNDED.env_id]
STRIP_ENCODER = EncoderConfig(image_size=(CELL, CELL * CELLS), grid=(CELLS,), feature_dim=FEATURES)


class Alternating(Strips):
    """Odd rows have the odd locations, even rows the even ones."""

    name = "toy-alternating"

    def location_mask(self, row):
        return np.arange(CELLS) % 2 == row % 2


ALTERNATING = spec(Alternating, "Glimpse/ToyAlternating-v0")
glimpse_env.register_world(ALTERNATING)


@pytest.fixture(scope="module")
def strips_captioner(tmp_path_factory):
    """A captioner of strips as a file."""
    path = tmp_path_factory.mktemp("strips") / "captioner.safetensors"
    save_captioner(build_captioner(words=tuple(COLOURS), sees=STRIP_ENCODER, dataset=STRIPS.name), path)
    return path


@pytest.fixture(params=IDS)
def env_id(request):
    return request.param


@pytest.mark.parametrize("attention", ["hard", "soft"])
@pytest.mark.parametrize("observe", ["features", "index", "glimpsed"])
def test_gymnasium_checks_it(env_id, strips_captioner, attention, observe):
    env = gym.make(env_id, captioner=strips_captioner, attention=attention, observe=observe)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_a_vector_environment_is_its_single_ones(env_id, strips_captioner, attention):
    arguments = {"captioner": strips_captioner, "attention": attention}
    vector = gym.make_vec(env_id, num_envs=3, vectorization_mode="vector_entry_point", **arguments)
    singles = [gym.make(env_id, **arguments).unwrapped for _ in range(3)]
    observations, infos = vector.reset(seed=7)
    started = [env.reset(seed=7 + i) for i, env in enumerate(singles)]
    ended = np.zeros(3, bool)
    for _ in range(20):
        for i, (observation, info) in enumerate(started):
            assert observations.keys() == observation.keys()
            for key, values in observations.items():  # products of three rows round otherwise than of one
                np.testing.assert_allclose(values[i], observation[key], atol=1e-6)
            assert same(infos["action_mask"][i], info["action_mask"])
        actions = vector.action_space.sample()
        observations, rewards, terminated, _, infos = vector.step(actions)
        for i, env in enumerate(singles):
            if ended[i]:
                started[i] = env.reset()
            else:
                observation, reward, done, _, info = env.step(actions[i])
                started[i] = observation, info
                assert done == terminated[i]
                assert reward == pytest.approx(rewards[i], abs=1e-12)
        ended = terminated


def test_the_info_of_a_complete_caption_has_the_worlds_metrics(env_id, strips_captioner):
    env = gym.make(env_id, captioner=strips_captioner).unwrapped
    _, info = env.reset(seed=3)
    assert info.keys() == {"action_mask"}
    ended = False
    while not ended:
        _, _, ended, _, info = env.step(env.action_space.sample())
    words, (reference,) = info["caption"].split(), env.dataset.references(env.row)
    assert info["bleu"].shape == (4,)
    assert info["exact"] == float(words == reference)
    assert info["wer"] == edit_distance(reference, words) / len(reference)
    vector = gym.make_vec(env_id, num_envs=2, vectorization_mode="vector_entry_point", captioner=strips_captioner)
    vector.reset(seed=3)
    infos = {}
    while "wer" not in infos:
        *_, infos = vector.step(vector.action_space.sample())
    assert infos["wer"].shape == infos["exact"].shape == infos["_wer"].shape == (2,)


def test_rows_have_the_locations_that_their_masks_say(env_id, strips_captioner):
    env = gym.make(env_id, captioner=strips_captioner).unwrapped
    counts = set()
    for row in range(len(env.dataset)):
        observation, info = env.reset(options={"image": row})
        mask = env.dataset.location_mask(row)
        counts.add(int(mask.sum()))
        assert info["action_mask"].tolist() == mask.astype(int).tolist() == observation["action_mask"].tolist()
        assert not observation["features"][~mask].any()
        assert observation["features"][mask].any()
    assert len(counts) > 3


def test_a_captioner_of_another_grid_is_refused(strips_captioner):
    with pytest.raises(ValueError, match="sees a grid of 7x7 locations, but toy-strips has 10"):
        gym.make(IDS[0], captioner=build_captioner(words=tuple(COLOURS)))


def test_a_row_without_locations_is_named(strips_captioner):
    class Empty(Strips):
        name = "toy-empty"

        def location_mask(self, row):
            return super().location_mask(row) & (row != 3)

    glimpse_env.register_world(spec(Empty, "Glimpse/ToyEmpty-v0"))
    with pytest.raises(glimpse_env.DataError, match=r"'strip-train-3' has no location to look at"):
        gym.make("Glimpse/ToyEmpty-v0", captioner=strips_captioner)


def test_a_masked_location_is_refused(strips_captioner):
    env = gym.make(IDS[0], captioner=strips_captioner).unwrapped
    row = next(row for row in range(len(env.dataset)) if not env.dataset.location_mask(row).all())
    env.reset(options={"image": row})
    before = env.get_state()
    with pytest.raises(InvalidAction, match=r"location 9 of episode 0 is masked.*action_mask"):
        env.step(CELLS - 1)
    assert same(before, env.get_state())
    soft = gym.make(IDS[0], captioner=strips_captioner, attention="soft").unwrapped
    soft.reset(options={"image": row})
    nowhere = np.zeros(CELLS, np.float32)
    nowhere[-1] = 1
    with pytest.raises(InvalidAction, match="masked"):
        soft.step(nowhere)


def test_sampled_actions_look_where_there_is_something(strips_captioner):
    env = gym.make(IDS[0], captioner=strips_captioner).unwrapped
    for seed in range(8):
        env.action_space.seed(seed)
        before_reset = int(env.action_space.sample())
        _, info = env.reset(seed=seed)
        assert info["action_mask"][before_reset]
        assert all(info["action_mask"][env.action_space.sample()] for _ in range(50))


def test_a_seed_amid_an_episode_keeps_to_its_locations(strips_captioner):
    env = gym.make(IDS[0], captioner=strips_captioner).unwrapped
    row = next(row for row in range(len(env.dataset)) if env.dataset.location_mask(row).sum() == 9)
    samples = []
    for _ in range(2):
        env.reset(options={"image": row})
        env.action_space.seed(3)
        first = int(env.action_space.sample())
        env.step(first)
        samples.append([first, *(int(env.action_space.sample()) for _ in range(200))])
    assert samples[0] == samples[1]
    assert first < 4  # every row has it: a reset might have come instead of the step
    assert set(samples[0]) == set(range(9))


@pytest.mark.parametrize("num_envs", [None, 3])
def test_rows_without_a_common_location_can_be_sampled(strips_captioner, num_envs):
    captioner = build_captioner(words=tuple(COLOURS), sees=STRIP_ENCODER, dataset=Alternating.name)
    if num_envs is None:
        env = gym.make(ALTERNATING.env_id, captioner=captioner).unwrapped
    else:
        env = gym.make_vec(
            ALTERNATING.env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", captioner=captioner
        )
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(30):
        _, _, ended, _, _ = env.step(env.action_space.sample())
        if num_envs is None and ended:
            env.reset()


@pytest.mark.parametrize("num_envs", [None, 2])
def test_the_last_frame_shows_no_weight_on_absent_locations(strips_captioner, num_envs):
    arguments = {"captioner": strips_captioner, "attention": "soft", "render_mode": "rgb_array"}
    if num_envs is None:
        env = gym.make(IDS[0], **arguments).unwrapped
    else:
        arguments |= {"vectorization_mode": "vector_entry_point", "autoreset_mode": "Disabled"}
        env = gym.make_vec(IDS[0], num_envs=num_envs, **arguments)
    row = next(row for row in range(len(env.dataset)) if env.dataset.location_mask(row).sum() == 5)
    env.reset(options={"image": row})
    ended = False
    while not np.all(ended):
        _, _, ended, _, _ = env.step(env.action_space.sample() * 0)
        if num_envs is not None and ended.any():
            break
    glimpses = env.get_state()["glimpses"]
    for weights in glimpses if num_envs is None else glimpses[int(np.argmax(ended))]:
        np.testing.assert_allclose(weights, [0.2] * 5 + [0] * 5, rtol=1e-6)
