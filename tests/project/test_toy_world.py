"""A world registered from outside the package works everywhere, without an edit elsewhere (see tests/toy_world.py)."""

from __future__ import annotations

import json

import gymnasium as gym
import pytest

import glimpse_env
import train.benchmark
import train.captioner
import train.evaluate
import train.reinforce
import train.sb3
from agents.loading import load_agent
from tests.toy_world import CELLS, GROUNDED, STRIPS, Strips, spec

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
        env=f"tests.toy_world:{IDS[0]}",
        captioner=str(captioners[IDS[0]]),
        updates=2,
        images=4,
        rollouts=2,
        run_dir=tmp_path / "run",
    )
    train.reinforce.main(options)
    header = (tmp_path / "run" / "metrics.csv").read_text().partition("\n")[0]
    assert {"val/bleu4", "val/exact", "val/wer"} <= set(header.split(","))
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
