"""A world registered from outside the package works everywhere, without an edit elsewhere (see tests/toy_world.py)."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction
from gymnasium.utils.env_checker import check_env

import glimpse_env
import train.benchmark
import train.captioner
import train.evaluate
import train.reinforce
import train.sb3
from agents.loading import load_agent
from glimpse_env import LocationGrid
from glimpse_env.metrics.edit_distance import edit_distance
from tests.conftest import build_captioner, same
from tests.toy_world import CELLS, COLOURS, GROUNDED, STRIPS, Strips, spec

IDS = [STRIPS.env_id, GROUNDED.env_id]


@pytest.fixture(scope="module")
def captioners(tmp_path_factory):
    """A captioner of each world, trained for one epoch."""
    files = {}
    for world in (STRIPS, GROUNDED):
        run = tmp_path_factory.mktemp("toy") / world.name
        train.captioner.main(train.captioner.Options(dataset=world.name, epochs=1, run_dir=run))
        files[world.env_id] = run / "captioner.safetensors"
    return files


@pytest.fixture(params=IDS)
def env_id(request):
    return request.param


@pytest.mark.parametrize("attention", ["hard", "soft"])
@pytest.mark.parametrize("observe", ["features", "index", "glimpsed"])
def test_gymnasium_checks_it(env_id, captioners, attention, observe):
    env = gym.make(env_id, captioner=captioners[env_id], attention=attention, observe=observe)
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("attention", ["hard", "soft"])
def test_a_vector_environment_is_its_single_ones(env_id, captioners, attention):
    arguments = {"captioner": captioners[env_id], "attention": attention}
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


def test_the_info_of_a_complete_caption_has_the_worlds_measures(env_id, captioners):
    env = gym.make(env_id, captioner=captioners[env_id]).unwrapped
    _, info = env.reset(seed=3)
    assert info.keys() == {"action_mask"}
    ended = False
    while not ended:
        _, _, ended, _, info = env.step(env.action_space.sample())
    words, (reference,) = info["caption"].split(), env.dataset.references(env.row)
    assert info["bleu"].shape == (4,)
    assert info["exact"] == float(words == reference)
    assert info["wer"] == edit_distance(reference, words) / len(reference)
    vector = gym.make_vec(env_id, num_envs=2, vectorization_mode="vector_entry_point", captioner=captioners[env_id])
    vector.reset(seed=3)
    infos = {}
    while "wer" not in infos:
        *_, infos = vector.step(vector.action_space.sample())
    assert infos["wer"].shape == infos["exact"].shape == infos["_wer"].shape == (2,)


def test_rows_have_the_locations_that_their_masks_say(env_id, captioners):
    env = gym.make(env_id, captioner=captioners[env_id]).unwrapped
    counts = set()
    for row in range(len(env.dataset)):
        observation, info = env.reset(options={"image": row})
        mask = env.dataset.location_mask(row)
        counts.add(int(mask.sum()))
        assert info["action_mask"].tolist() == mask.astype(int).tolist() == observation["action_mask"].tolist()
        assert not observation["features"][~mask].any()
        assert observation["features"][mask].any()
    assert len(counts) > 3


def test_a_captioner_of_another_grid_is_refused(captioners):
    with pytest.raises(ValueError, match="sees a grid of 7x7 locations, but toy-strips has 10"):
        gym.make(IDS[0], captioner=build_captioner(words=tuple(COLOURS)))


def test_a_row_without_locations_is_named(captioners):
    class Empty(Strips):
        name = "toy-empty"

        def location_mask(self, row):
            return super().location_mask(row) & (row != 3)

    glimpse_env.register_world(spec(Empty, "Glimpse/ToyEmpty-v0"))
    with pytest.raises(glimpse_env.DataError, match=r"'strip-train-3' has no location to look at"):
        gym.make("Glimpse/ToyEmpty-v0", captioner=captioners[IDS[0]])


def test_a_masked_location_is_refused(captioners):
    env = gym.make(IDS[0], captioner=captioners[IDS[0]]).unwrapped
    row = next(row for row in range(len(env.dataset)) if not env.dataset.location_mask(row).all())
    env.reset(options={"image": row})
    before = env.get_state()
    with pytest.raises(InvalidAction, match=r"location 9 of episode 0 is masked.*action_mask"):
        env.step(CELLS - 1)
    assert same(before, env.get_state())
    soft = gym.make(IDS[0], captioner=captioners[IDS[0]], attention="soft").unwrapped
    soft.reset(options={"image": row})
    nowhere = np.zeros(CELLS, np.float32)
    nowhere[-1] = 1
    with pytest.raises(InvalidAction, match="masked"):
        soft.step(nowhere)


def test_sampled_actions_look_where_there_is_something(captioners):
    env = gym.make(IDS[0], captioner=captioners[IDS[0]]).unwrapped
    for seed in range(8):
        env.action_space.seed(seed)
        before_reset = int(env.action_space.sample())
        _, info = env.reset(seed=seed)
        assert info["action_mask"][before_reset]
        assert all(info["action_mask"][env.action_space.sample()] for _ in range(50))


AGENTS = ["soft", "hard", "random", "center", "raster", "uniform"]


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("decode", ["greedy", "beam"])
def test_every_agent_is_evaluated(env_id, captioners, agent, decode, tmp_path):
    run = captioners[env_id].parent
    named = {"soft": f"soft:{run}", "hard": f"hard:{run}"}.get(agent, agent)
    out = tmp_path / "out.json"
    options = train.evaluate.Options(
        env=env_id, split="val", agent=named, decode=decode, captioner=str(captioners[env_id]), limit=8, json=out
    )
    train.evaluate.main(options)
    figures = json.loads(out.read_text())
    assert len(figures["bleu"]) == 4
    assert 0 <= figures["exact"] <= 1
    assert figures["wer"] >= 0


def test_the_oracle_reads_ground_truth_where_a_world_has_it(captioners, tmp_path):
    scores = {}
    for agent in ("oracle", "random"):
        out = tmp_path / f"{agent}.json"
        options = train.evaluate.Options(
            env=GROUNDED.env_id, agent=agent, captioner=str(captioners[GROUNDED.env_id]), json=out
        )
        train.evaluate.main(options)
        scores[agent] = json.loads(out.read_text())
    assert scores["oracle"]["looking"]["empty"] == 0 < scores["random"]["looking"]["empty"]
    with pytest.raises(ValueError, match="ground truth"):
        train.evaluate.main(
            train.evaluate.Options(env=IDS[0], agent="oracle", captioner=str(captioners[IDS[0]]), limit=2)
        )


@pytest.mark.parametrize("algo", ["ppo", "maskable-ppo"])
def test_ppo_trains_for_a_rollout(captioners, algo, tmp_path):
    options = train.sb3.Options(
        env=IDS[0],
        algo=algo,
        captioner=str(captioners[IDS[0]]),
        steps=128,
        num_envs=8,
        n_steps=16,
        batch_size=64,
        validate_every=128,
        run_dir=tmp_path / algo,
    )
    train.sb3.main(options)
    assert list((tmp_path / algo).glob("*.safetensors"))


def test_reinforce_trains(captioners, tmp_path):
    options = train.reinforce.Options(
        env=IDS[0], captioner=str(captioners[IDS[0]]), updates=2, images=4, rollouts=2, run_dir=tmp_path / "run"
    )
    train.reinforce.main(options)
    env = gym.make(IDS[0], captioner=captioners[IDS[0]], observe="index").unwrapped
    agent = load_agent(str(tmp_path / "run"), env)
    for row in range(len(env.dataset)):
        observation, info = env.reset(options={"image": row})
        action, _ = agent.predict(observation, deterministic=True)
        assert info["action_mask"][action]


def test_a_frame_has_the_proportions_of_a_strip(captioners):
    env = gym.make(IDS[0], captioner=captioners[IDS[0]], render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    env.step(1)
    frame = env.render()
    picture = frame[: round(448 / CELLS)]
    assert frame.shape[1] == 448
    assert frame.shape[0] % 16 == 0
    assert frame.shape[0] < 448
    assert picture.std() > 10
    text = gym.make(IDS[0], captioner=captioners[IDS[0]], render_mode="ansi").unwrapped
    text.reset(seed=0)
    text.step(1)
    assert text.render().count("■") == 1


def test_the_benchmark_writes_its_report(captioners, tmp_path):
    class WithCaptioner(Strips):
        name = "toy-with-captioner"

    world = spec(WithCaptioner, "Glimpse/ToyWithCaptioner-v0", captioner=captioners[IDS[0]])
    glimpse_env.register_world(world)
    attention = captioners[IDS[0]].with_name("attention.safetensors")
    train.benchmark.main(
        train.benchmark.Options(
            env=world.env_id,
            agents=[f"soft:{attention}", f"hard:{attention}", "random", "uniform"],
            limit=8,
            run_dir=tmp_path / "benchmark",
        )
    )
    table = (tmp_path / "benchmark" / "results.md").read_text()
    assert "exact" in table
    assert "wer" in table
    assert (tmp_path / "benchmark" / "report.html").stat().st_size > 10_000


def test_a_world_is_registered_once():
    glimpse_env.register_world(STRIPS)  # the same again does nothing
    with pytest.raises(ValueError, match=r"name 'toy-strips' is registered already"):
        glimpse_env.register_world(spec(Strips, "Glimpse/Other-v0"))
    with pytest.raises(ValueError, match=r"env_id 'Glimpse/ToyStrips-v0' is registered already"):
        glimpse_env.register_world(spec(Strips, STRIPS.env_id, name="other"))


def test_a_spec_without_what_it_needs_is_refused():
    with pytest.raises(ValueError, match=r"'toy-strips' needs an env_id such as"):
        spec(Strips, None)
    with pytest.raises(ValueError, match=r"needs grid= and image_size="):
        spec(Strips, "Glimpse/Other-v0", grid=None)
    with pytest.raises(ValueError, match=r"16 x 160 px, which do not divide into its grid of 7 tiles"):
        spec(Strips, "Glimpse/Other-v0", grid=LocationGrid((7,)))
    with pytest.raises(ValueError, match=r"needs open="):
        glimpse_env.DatasetSpec("toy", "Glimpse/Toy-v0", None)
    with pytest.raises(TypeError, match="DatasetSpec"):
        glimpse_env.register_world({"name": "toy"})
