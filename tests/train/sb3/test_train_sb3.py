"""Stable-Baselines3 as a command: every algorithm trains, is scored on val, is kept, goes on, and refuses."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro

from agents.attention import POLICY_FORMAT, load_attention, save_attention
from agents.attention_agents import HardAttentionAgent
from agents.loading import find_agent, load_agent
from glimpse_env.core.safetensors_files import FileFormatError, read_tensors, write_tensors
from glimpse_env.datasets import make_dataset
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.features.build import open_features
from glimpse_env.metrics.rewards import register_reward
from glimpse_env.models.captioner import load_captioner
from glimpse_env.rollout.beam_search import BeamSearch
from glimpse_env.rollout.decode import decode
from train.benchmark import runner as benchmark
from train.common.options import prepare
from train.common.run_directory import RunDirectory
from train.evaluate import evaluation as evaluate
from train.evaluate.attention_metrics import replay
from train.evaluate.scoring import score
from train.sb3.options import RECIPES, Options, resolve_defaults
from train.sb3.trainer import ALGORITHMS, Trainer, main

ROLLOUT = 4 * 8
ACTOR_CRITIC = {"n_steps": 8, "steps": 3 * ROLLOUT}
TINY = {
    "ppo": {**ACTOR_CRITIC, "n_epochs": 2},
    "maskable-ppo": {**ACTOR_CRITIC, "n_epochs": 2},
    "recurrent-ppo": {**ACTOR_CRITIC, "n_epochs": 2},
    "a2c": ACTOR_CRITIC,
    "dqn": {"learning_starts": 16, "batch_size": 8, "steps": 3 * ROLLOUT},
}
VAL = [*(f"val/bleu{order}" for order in (1, 2, 3, 4)), "val/length_ratio", "val/bad_endings"]


@pytest.fixture
def tiny(captioner_file, tmp_path):
    """Options of a tiny run of an algorithm, by default in ``tmp_path / "run"``."""

    def build(algo="ppo", **changes):
        common = {"captioner": str(captioner_file), "limit": 16, "num_envs": 4, "attention_dim": 6, "threads": 1}
        options = {"run_dir": tmp_path / "run", "validate_every": ROLLOUT, **common, **TINY[algo], **changes}
        return Options(algo=algo, **options)

    return build


def metrics(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def val(captioner_file):
    captioner, images = load_captioner(captioner_file), make_dataset("shapes", "val")
    return captioner, images, open_features(images, captioner.encoder)


def played(captioner_file, attention):
    """Scores on the first 16 images of val of an attention file that is played hard."""
    captioner, images, features = val(captioner_file)
    captions = decode(captioner, features, HardAttentionAgent(load_attention(attention), features), range(16))
    return score(captions, [images.references(row) for row in range(16)])


@pytest.mark.parametrize("algo", ["ppo", "a2c", "dqn", "maskable-ppo"])
def test_every_algorithm_leaves_an_attention_that_plays(tiny, captioner_file, tmp_path, algo, capsys):
    main(tiny(algo, seed=3))
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    assert (config["algo"], config["seed"], config["observe"]) == (algo, 3, "index")
    assert config["learning_rate"] == RECIPES[algo]["learning_rate"]
    rows = metrics(run)
    assert [int(row["step"]) for row in rows] == [0, ROLLOUT, 2 * ROLLOUT, 3 * ROLLOUT]
    assert all(row["charts/steps"] == row["step"] for row in rows)
    assert all(math.isfinite(float(row[name])) for row in rows for name in (*VAL, "charts/seconds"))
    assert rows[0]["charts/reward"] == ""
    assert 0 <= float(rows[-1]["charts/reward"]) <= 1
    if algo != "dqn":
        assert 0 < float(rows[-1]["losses/entropy"]) <= math.log(49) + 1e-5
    best = max(rows, key=lambda row: float(row["val/bleu4"]))
    assert f"after {int(best['step']):,} steps; weights in {run}" in capsys.readouterr().out.splitlines()[-1]
    scores = played(captioner_file, run / "attention.safetensors")
    assert scores.bleu == pytest.approx([float(best[f"val/bleu{order}"]) for order in (1, 2, 3, 4)], abs=0.02)
    notes = read_tensors(run / "attention.safetensors", "glimpse-attention-1")[1]["notes"]
    assert notes["trained_with"] == {"command": "train.sb3", "algo": algo, "seed": 3, "steps": int(best["step"])}
    assert not (run / "policy.safetensors").exists()
    assert any(run.glob("events.out.tfevents*"))


def by_hand(model, captioner_file, observe, count):
    """Captions of the first images of val, played in the vector environment."""
    envs = GlimpseVectorEnv(count, "shapes", split="val", captioner=captioner_file, observe=observe)
    observation, _ = envs.reset(options={"image": list(range(count))})
    state, starts = None, np.ones(count, bool)
    captions = [None] * count
    while None in captions:
        actions, state = model.predict(observation, state, starts, deterministic=True)
        observation, _, ended, _, infos = envs.step(actions)
        starts[:] = False
        for slot in ended.nonzero()[0]:
            captions[slot] = captions[slot] if captions[slot] is not None else infos["caption"][slot]
    return captions


@pytest.mark.parametrize(
    ("algo", "observe"),
    [("recurrent-ppo", None), ("recurrent-ppo", "features"), ("ppo", "glimpsed"), ("dqn", "glimpsed")],
)
def test_policies_that_are_no_plain_attention_are_played_as_they_are(tiny, captioner_file, tmp_path, algo, observe):
    options = resolve_defaults(tiny(algo, observe=observe, validate_every=10**6, learning_rate=0.05))
    assert options.observe == (observe or "glimpsed")
    prepare(options)
    trainer = Trainer(options)
    directory = RunDirectory(tmp_path / "run", options, resume=False)
    trainer.run(directory)
    directory.close()
    captions = [" ".join(caption.words) for caption in trainer.caption()]
    assert captions == by_hand(trainer.model, captioner_file, options.observe, 16)
    assert all(math.isfinite(float(row[name])) for row in metrics(tmp_path / "run") for name in VAL)
    assert not (tmp_path / "run" / "attention.safetensors").exists()

    # train.evaluate scores the file as the validation of the training scores the same weights.
    tensors, metadata = read_tensors(tmp_path / "run" / "policy.safetensors", POLICY_FORMAT)
    assert metadata["policy"]["algo"] == algo
    assert metadata["policy"]["places"] == (options.observe == "glimpsed")
    evaluation = evaluate.Options(agent=str(tmp_path / "run"), limit=16)
    result = evaluate.evaluate(evaluation)
    best = max(float(row["val/bleu4"]) for row in metrics(tmp_path / "run"))
    assert result.scores.bleu[3] == pytest.approx(best, abs=0.02)  # which had single precision
    trainer.model.policy.load_state_dict(tensors)
    expected = trainer.caption()
    assert [caption.words for caption in result.captions] == [caption.words for caption in expected]
    np.testing.assert_array_equal(result.captions[3].glimpses, expected[3].glimpses)
    _, images, _ = val(captioner_file)
    assert result.scores == score(expected, [images.references(row) for row in range(16)])


@pytest.fixture
def remembering(tiny, tmp_path):
    """The run directory of a RecurrentPPO, with weights so large that its memory decides where it looks."""
    main(tiny("recurrent-ppo", steps=ROLLOUT, validate_every=10**6))
    file = tmp_path / "run" / "policy.safetensors"
    tensors, metadata = read_tensors(file, POLICY_FORMAT)
    larger = {name: 8 * tensor if "lstm_actor" in name else tensor for name, tensor in tensors.items()}
    write_tensors(file, larger, metadata)
    return tmp_path / "run"


def test_a_memory_is_carried_through_a_beam_and_an_episode(remembering, captioner_file):
    captioner, _, features = val(captioner_file)
    env = gym.make("Glimpse/Shapes-v0", split="val", captioner=captioner_file, observe="glimpsed")
    agent = load_agent(str(remembering), env)
    (greedy,) = decode(captioner, features, agent, [5])
    (beam,) = decode(captioner, features, agent, [5], BeamSearch(1))
    assert beam.words == greedy.words
    # With the words of a beam's best caption handed to it, a memory of its own looks where the beam's did.
    beams = decode(captioner, features, agent, range(40), BeamSearch(3))
    state = None
    for step, replayed in enumerate(replay(captioner, features, beams, "hard")):
        locations, state = agent.predict(replayed.observation, state, np.full(40, step == 0), deterministic=True)
        np.testing.assert_array_equal(locations[replayed.alive], replayed.weights.argmax(1)[replayed.alive])
    state, ended, locations = None, False, []
    observation, info = env.reset(options={"image": 5})
    while not ended:
        location, state = agent.predict(observation, state, np.array([not locations]), deterministic=True)
        locations.append(int(location))
        observation, _, ended, _, info = env.step(location)
    assert info["caption"].split() == greedy.words
    assert locations == greedy.glimpses.argmax(1).tolist()


def test_a_forked_memory_is_that_of_the_parents(remembering, captioner_file):
    env = gym.make("Glimpse/Shapes-v0", split="val", captioner=captioner_file)
    agent = load_agent(str(remembering), env)
    state = tuple(np.arange(6.0).reshape(1, 3, 2) + offset for offset in (0, 10))
    hidden, cell = agent.fork(state, np.array([2, 0, 2]))
    np.testing.assert_array_equal(hidden[0], [[4, 5], [0, 1], [4, 5]])
    np.testing.assert_array_equal(cell[0], [[14, 15], [10, 11], [14, 15]])


def test_the_seed_decides_what_a_policy_draws_and_leaves_torchs_generator_alone(remembering):
    options = evaluate.Options(agent=str(remembering), limit=8, stochastic=True)
    before = torch.random.get_rng_state()
    first, repeated, reseeded = (
        [caption.glimpses.argmax(1).tolist() for caption in evaluate.evaluate(replace(options, seed=seed)).captions]
        for seed in (1, 1, 2)
    )
    assert first == repeated
    assert first != reseeded
    assert torch.equal(torch.random.get_rng_state(), before)


def test_runs_with_a_memory_stand_in_the_benchmarks_table(remembering, tmp_path):
    remembering.rename(tmp_path / "shapes-recurrent-ppo-0")
    pattern = str(tmp_path / "shapes-recurrent-ppo-?")
    benchmark.main(benchmark.Options(agents=[pattern, "center"], limit=8, split="val", run_dir=tmp_path / "table"))
    agents = json.loads((tmp_path / "table" / "results.json").read_text())["agents"]
    assert agents[pattern]["seeds"] == [str(tmp_path / "shapes-recurrent-ppo-0")]


def test_a_policy_that_does_not_fit_is_refused(remembering, captioner_file, tmp_path):
    with pytest.raises(ValueError, match="by that name alone, without a prefix, and no training starts"):
        find_agent(f"soft:{remembering}", "shapes")
    with pytest.raises(ValueError, match="was trained in Glimpse/Shapes-v0, not in Glimpse/Coco-v0"):
        find_agent(str(remembering), "coco")
    with pytest.raises(ValueError, match="by that name alone, without a prefix, and no training starts"):
        main(Options(run_dir=tmp_path / "next", start=str(remembering / "policy.safetensors")))
    env = gym.make("Glimpse/Shapes-v0", split="val")  # the shipped captioner, which is larger
    with pytest.raises(ValueError, match=r"policy.*of shape.*was trained with another captioner"):
        load_agent(str(remembering), env)
    file = remembering / "policy.safetensors"
    tensors, metadata = read_tensors(file, POLICY_FORMAT)
    fitting = gym.make("Glimpse/Shapes-v0", split="val", captioner=captioner_file)
    write_tensors(file, tensors, {**metadata, "policy": {**metadata["policy"], "algo": "sac"}})
    with pytest.raises(FileFormatError, match=r"'sac'.*train the agent again"):
        load_agent(str(remembering), fitting)
    for algo in ("ppo", "a2c", "dqn", "maskable-ppo"):
        write_tensors(file, tensors, {**metadata, "policy": {**metadata["policy"], "algo": algo}})
        with pytest.raises(FileFormatError, match=f"has an LSTM, which does not fit algorithm '{algo}'"):
            load_agent(str(remembering), fitting)
    plain = {name: tensor for name, tensor in tensors.items() if "lstm" not in name}
    write_tensors(file, plain, metadata)
    with pytest.raises(FileFormatError, match="lacks the LSTM of algorithm 'recurrent-ppo'"):
        load_agent(str(remembering), fitting)
    write_tensors(file, {**tensors, "lstm_actor.weight_hh_l0": torch.zeros(3, 2)}, metadata)
    with pytest.raises(FileFormatError, match=r"LSTM's weights are of shape \(3, 2\)"):
        load_agent(str(remembering), fitting)
    del tensors["lstm_actor.bias_hh_l0"]
    write_tensors(file, tensors, metadata)
    with pytest.raises(FileFormatError, match=r"'lstm_actor.bias_hh_l0' is missing"):
        load_agent(str(remembering), fitting)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        load_agent(str(remembering), fitting)


def test_a_memory_over_rows_sees_the_images_it_is_scored_on(tiny):
    """The same policy, once with a table of train that must be lent that of val, and once given their features."""
    trainers = [Trainer(resolve_defaults(tiny("recurrent-ppo", observe=observe))) for observe in ("index", "features")]
    trainers[1].model.policy.load_state_dict(trainers[0].model.policy.state_dict())
    first, second = (trainer.caption() for trainer in trainers)
    assert [caption.words for caption in first] == [caption.words for caption in second]
    for caption, expected in zip(first, second, strict=True):
        np.testing.assert_array_equal(caption.glimpses, expected.glimpses)
    assert len(trainers[0].model.policy.features_extractor.table) == 20_000


class PowerCut(RunDirectory):
    """A run directory whose process dies right after some checkpoint."""

    def __init__(self, path, options, saves):
        super().__init__(path, options, resume=False)
        self.saves = saves

    def save(self, state):
        super().save(state)
        self.saves -= 1
        if self.saves == 0:
            raise KeyboardInterrupt


def stop(options, saves):
    options = resolve_defaults(options)
    prepare(options)
    directory = PowerCut(options.run_dir, options, saves)
    trainer = Trainer(options)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(directory)
    directory.close()
    return trainer


RUNS = [
    *[{"algo": algo} for algo in ALGORITHMS],
    {"algo": "ppo", "reward": "bleu + 0.5 * rouge-l", "shaped": True},
    {"algo": "recurrent-ppo", "observe": "index"},
    {"algo": "dqn", "observe": "glimpsed"},
]


@pytest.mark.parametrize("changes", RUNS, ids=str)
def test_a_stopped_run_ends_as_one_in_one_go(tiny, tmp_path, changes):
    options = resolve_defaults(tiny(**changes, run_dir=tmp_path / "uninterrupted"))
    prepare(options)
    uninterrupted, directory = Trainer(options), RunDirectory(tmp_path / "uninterrupted", options, resume=False)
    uninterrupted.run(directory)
    directory.close()
    stopped = stop(tiny(**changes), saves=2)  # after steps 0 and 32
    assert stopped.model.num_timesteps == ROLLOUT
    options = resolve_defaults(tiny(**changes, resume=True))
    prepare(replace(options, seed=7))  # another process: nothing of the generators is left
    resumed = Trainer(options)
    directory = RunDirectory(tmp_path / "run", options, resume=True)
    resumed.load(directory.restore())
    rates = []
    update = resumed.model._update_learning_rate
    resumed.model._update_learning_rate = lambda optimiser: (update(optimiser), rates.append(rate(optimiser)))
    resumed.run(directory)
    directory.close()
    for name, tensor in uninterrupted.model.policy.state_dict().items():
        assert torch.equal(resumed.model.policy.state_dict()[name], tensor), name
    assert resumed.model.num_timesteps == 3 * ROLLOUT
    rows = [[{**row, "charts/seconds": ""} for row in metrics(tmp_path / name)] for name in ("uninterrupted", "run")]
    assert rows[0] == rows[1]
    assert [int(row["step"]) for row in rows[1]] == [0, ROLLOUT, 2 * ROLLOUT, 3 * ROLLOUT]
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[0] < RECIPES[changes["algo"]]["learning_rate"] * 2 / 3


def rate(optimiser):
    return optimiser.param_groups[0]["lr"]


def test_the_seed_decides_a_run(tiny, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main(tiny(seed=seed, run_dir=tmp_path / name))
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]["policy"] for name in "abc"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_score_before_the_first_step_is_that_of_the_start(tiny, captioner_file, attention_file, tmp_path):
    expected = played(captioner_file, attention_file)
    for algo in ("ppo", "dqn"):
        run = tmp_path / algo
        main(tiny(algo, start=str(attention_file), attention_dim=64, run_dir=run))
        first = metrics(run)[0]
        assert [float(first[name]) for name in VAL[:4]] == pytest.approx(expected.bleu, rel=1e-5)
        assert float(first["val/length_ratio"]) == pytest.approx(expected.length_ratio, rel=1e-5)
        assert load_attention(run / "attention.safetensors").config == load_attention(attention_file).config
    trainer = Trainer(resolve_defaults(tiny("dqn", start=str(attention_file))))
    online, target = (network.state_dict() for network in (trainer.model.q_net, trainer.model.q_net_target))
    assert all(torch.equal(online[name], target[name]) for name in online)


def says_there(references, words, ended):
    """A reward that pays at once for a word the tiny captioner says at some glimpses and not at others."""
    return words[:10].count("there") / 10


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_what_pays_is_done_more_often(tiny, tmp_path, algo):
    register_reward("says-there", says_there)
    options = {"num_envs": 32, "steps": 32 * 8 * 16, "validate_every": 32 * 8 * 4, "learning_rate": 0.02}
    main(tiny(algo, reward="says-there", shaped=True, ent_coef=0.0, **options))
    rewards = [float(row["charts/reward"]) for row in metrics(tmp_path / "run")[1:]]
    assert rewards[-1] > rewards[0] + 0.08


@pytest.mark.parametrize("algo", ["ppo", "a2c", "dqn"])
def test_weights_that_are_no_numbers_end_a_run_and_leave_its_checkpoint(tiny, tmp_path, algo):
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    message = rf"not finite any more after step \d+.*{checkpoint}; lower --learning-rate"
    with pytest.raises(FloatingPointError, match=message):
        main(tiny(algo, learning_rate=float("inf")))
    state = torch.load(checkpoint, weights_only=True)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"]["policy"].values())
    load_attention(tmp_path / "run" / "attention.safetensors")


def test_accidents_around_a_run(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        main(tiny(resume=True))
    main(tiny("a2c"))
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already; go on with --resume"):
        main(tiny("a2c"))
    with pytest.raises(ValueError, match=r"started with n_steps=8, not 4; resume with the same options"):
        main(tiny("a2c", resume=True, n_steps=4))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_what_cannot_be_is_refused_before_anything_is_written(tiny, attention, tmp_path):
    wide = tmp_path / "wide.safetensors"
    save_attention(type(attention)(type(attention.config)(9, 12, 6)), wide)
    for changes, message in [
        ({"env": "Glimpse/Dogs-v0"}, r"unknown environment 'Glimpse/Dogs-v0'; expected one of Glimpse/Shapes-v0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"validate_every": 0}, "validate_every must be at least 1, got 0"),
        ({"num_envs": 1, "n_steps": 1}, "ppo needs rollouts of at least 2 steps; pass --num-envs 2"),
        ({"learning_starts": 5}, "ppo has no learning_starts; it takes steps, num_envs"),
        ({"algo": "recurrent-ppo", "start": "soft"}, "recurrent-ppo cannot start from an attention.*leave --from out"),
        ({"algo": "sac"}, "unknown algorithm 'sac'; expected one of ppo, maskable-ppo, recurrent-ppo"),
        ({"start": str(wide)}, r"lengths \(9, 12\), but the environment's captioner has \(8, 12\)"),
        ({"start": "soft"}, r"shapes-soft.*captioner has \(8, 12\)"),
        ({"reward": "praise"}, "praise"),
        ({"observe": "nothing"}, "unknown observe 'nothing'"),
    ]:
        with pytest.raises(ValueError, match=message):
            main(Options(**{**vars(tiny()), **changes}))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(tiny(start="nowhere"))
    assert not (tmp_path / "run").exists()


def test_options_left_open_follow_the_algorithm():
    ppo = resolve_defaults(Options())
    assert (ppo.algo, ppo.observe, str(ppo.run_dir)) == ("ppo", "index", "runs/shapes-ppo")
    assert all(getattr(ppo, name) == RECIPES["ppo"][name] for name in ("num_envs", "n_steps", "batch_size"))
    assert ppo.steps % (ppo.num_envs * ppo.n_steps) == 0
    assert 0 <= ppo.steps - RECIPES["ppo"]["steps"] < ppo.num_envs * ppo.n_steps
    assert resolve_defaults(ppo) == ppo
    dqn = resolve_defaults(Options(algo="dqn", env="Glimpse/Flickr8k-v0", learning_rate=0.5, steps=100))
    assert (dqn.learning_rate, dqn.steps, dqn.ent_coef) == (0.5, 128, None)
    photographs = resolve_defaults(Options(env="Glimpse/Flickr8k-v0"))
    assert photographs.learning_rate < ppo.learning_rate
    assert resolve_defaults(Options(num_envs=2, n_steps=4)).batch_size == 8  # no more than a rollout has
    assert resolve_defaults(Options(algo="recurrent-ppo")).observe == "glimpsed"


def test_options_are_read_from_the_command_line():
    line = "--env Glimpse/Coco-v0 --algo recurrent-ppo --from a/b --steps 9 --observe features --shaped --resume"
    assert tyro.cli(Options, args=line.split()) == Options(
        env="Glimpse/Coco-v0", algo="recurrent-ppo", start="a/b", steps=9, observe="features", shaped=True, resume=True
    )


def test_help():
    result = subprocess.run([sys.executable, "-m", "train.sb3", "--help"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    for option in "seed device threads limit data-root env algo from steps num-envs run-dir resume".split():
        assert f"--{option}" in result.stdout
