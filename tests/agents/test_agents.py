"""Agents answer predict() alike; attention is SAT's equations; scripts do what they say; names find agents."""

from __future__ import annotations

import copy
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import (
    AGENT_NAMES,
    AdditiveAttention,
    AttentionConfig,
    CenterAgent,
    HardAttentionAgent,
    OracleAgent,
    RandomAgent,
    RasterScanAgent,
    SoftAttentionAgent,
    UniformAgent,
    find_agent,
    load_agent,
    load_attention,
    save_attention,
)
from agents.attention_agents import entropy, log_probability, sample_locations
from agents.base import StatelessAgent, batch_size
from agents.loading import ASSETS
from agents.scripted import ShuffledAgent
from glimpse_env import FileFormatError, GlimpseEnv
from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets.shapes import SHAPES

L = 49


@pytest.fixture(scope="module")
def env(captioner):
    return GlimpseEnv(split="val", captioner=captioner)


@pytest.fixture(scope="module")
def observations(env):
    """Single observations from the middle of five episodes, with their features."""
    collected = []
    for seed in range(5):
        env.reset(seed=seed)
        for location in range(seed + 2):
            observation, *_ = env.step(location * 3)
        collected.append(observation)
    return collected


def stack(observations):
    return {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}


def by_index(observation, row):
    rest = {name: array for name, array in observation.items() if name != "features"}
    return {"image": np.array([row]), **rest}


def alpha_by_hand(attention, features, hidden):
    """SAT eq. 4 and 5, one location at a time."""
    weight = {name: tensor.double().numpy() for name, tensor in attention.state_dict().items()}
    scores = []
    for annotation in features.astype(float):
        key = weight["key.weight"] @ annotation + weight["key.bias"]
        query = weight["query.weight"] @ hidden.astype(float) + weight["query.bias"]
        scores.append(float(weight["score.weight"][0] @ np.tanh(key + query)))
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum()


def agents_of(env, attention):
    return {
        "random": RandomAgent(L),
        "center": CenterAgent(LocationGrid((7, 7))),
        "raster": RasterScanAgent(L),
        "uniform": UniformAgent(L),
        "oracle": OracleAgent(env.dataset, env.captioner.vocabulary, env),
        "soft": SoftAttentionAgent(attention, env.features),
        "hard": HardAttentionAgent(attention, env.features),
        "shuffled": ShuffledAgent(attention, env.features, env=env),
    }


# --- predict ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", ["random", "center", "raster", "uniform", "oracle", "soft", "hard", "shuffled"])
def test_predict_answers_one_or_many(env, attention, observations, name, deterministic):
    agent = agents_of(env, attention)[name]
    env.reset(options={"image": 4})
    single, batch = observations[0], stack(observations)
    if name in ("oracle", "shuffled"):
        single, batch = by_index(single, 4), {**batch, "image": np.arange(5)[:, None]}
        del batch["features"]
    assert batch_size(single) is None
    assert batch_size(batch) == 5
    tail, dtype = ((), np.int64) if agent.attention == "hard" else ((L,), np.float32)
    for observation, lead in ((single, ()), (batch, (5,))):
        starts = np.ones(lead or 1, bool)
        action, state = agent.predict(observation, None, starts, deterministic)
        assert isinstance(action, (np.ndarray, np.generic))
        assert action.shape == lead + tail
        assert action.dtype == dtype
        again, _ = agent.predict(observation, state=state, episode_start=~starts, deterministic=deterministic)
        assert again.shape == action.shape
        if agent.attention == "hard":
            assert ((action >= 0) & (action < L)).all()
        else:
            assert (action >= 0).all()
            np.testing.assert_allclose(action.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("observe", ["features", "index", "glimpsed"])
@pytest.mark.parametrize("name", ["random", "center", "raster", "uniform", "oracle", "soft", "hard", "shuffled"])
def test_every_agent_plays_its_environment(captioner, attention_file, name, observe):
    kind = "soft" if name in ("uniform", "soft") else "hard"
    env = gym.make(
        "Glimpse/Shapes-v0", split="val", captioner=captioner, attention=kind, observe=observe, max_caption_length=6
    )
    agent = load_agent(f"{name}:{attention_file}" if name in ("soft", "hard", "shuffled") else name, env)
    assert agent.attention == kind
    state, start, ended = None, np.ones(1, bool), False
    observation, _ = env.reset(seed=0)
    while not ended:
        action, state = agent.predict(observation, state, start)
        assert env.action_space.contains(action)
        observation, _, ended, _, info = env.step(action)
        start = np.zeros(1, bool)
    assert info["caption"]


@pytest.mark.parametrize("name", ["center", "raster", "uniform", "soft", "hard"])
def test_a_batch_is_its_observations_one_by_one(env, attention, observations, name):
    agent = agents_of(env, attention)[name]
    together, _ = agent.predict(stack(observations), deterministic=True)
    apart = [agent.predict(observation, deterministic=True)[0] for observation in observations]
    np.testing.assert_allclose(together, np.stack(apart), atol=1e-6)


# --- attention --------------------------------------------------------------------------------------------------------


def test_soft_attention_is_sats_equations(env, attention, observations):
    agent = SoftAttentionAgent(attention, env.features)
    for observation in observations:
        expected = alpha_by_hand(attention, observation["features"], observation["hidden"])
        alpha, _ = agent.predict(observation)
        np.testing.assert_allclose(alpha, expected, atol=1e-6)
        assert np.ptp(expected) > 1e-3  # not uniform, so that equality says something


def test_rows_stand_for_their_features(env, attention, observations):
    for agent in (SoftAttentionAgent(attention, env.features), HardAttentionAgent(attention, env.features)):
        for row, observation in enumerate(observations):
            featured = {**observation, "features": np.asarray(env.features[row], np.float32)}
            featured_action, _ = agent.predict(featured, deterministic=True)
            indexed_action, _ = agent.predict(by_index(observation, row), deterministic=True)
            np.testing.assert_allclose(featured_action, indexed_action, atol=1e-6)
    with pytest.raises(ValueError, match=r"give the agent env\.unwrapped\.features"):
        SoftAttentionAgent(attention).predict(by_index(observations[0], 0))


def test_kept_keys_are_those_of_the_rows_that_are_shown(env, attention, observations):
    rng = np.random.default_rng(0)
    agents, alone_with = (
        {kind: kind(attention, env.features) for kind in (SoftAttentionAgent, HardAttentionAgent)} for _ in range(2)
    )
    batches = [[0, 1, 2], [0, 5, 2], [0, 5, 2], [7, 7, 2], [2, 7, 7], [7, 7], [1, 2, 3, 4], [9] * 4, [1, 2, 3, 4], [1]]
    images = np.zeros(4, np.int64)  # one array that changes, as some environments hand over
    for rows in [*batches, *rng.integers(3, size=(40, 4))]:
        hidden = rng.normal(size=(len(rows), 12)).astype(np.float32)
        images[: len(rows)] = rows
        image = images[: len(rows), None]
        batch = {"image": image, "hidden": hidden, "word": np.zeros((len(rows), 1), np.int64)}
        for kind, agent in agents.items():
            action, _ = agent.predict(batch, deterministic=True)
            fresh, _ = kind(attention, env.features).predict(batch, deterministic=True)
            np.testing.assert_allclose(action, fresh, atol=1e-6)
            featured, _ = agent.predict({**batch, "features": env.features[rows]}, deterministic=True)
            np.testing.assert_allclose(featured, fresh, atol=1e-6)
            alone, _ = alone_with[kind].predict({name: array[-1] for name, array in batch.items()}, deterministic=True)
            np.testing.assert_allclose(alone, fresh[-1], atol=1e-6)


@pytest.mark.parametrize("update", ["sgd", "adam", "loaded", "bias", "mean"])
def test_keys_follow_weights_that_are_trained_in_place(env, attention, observations, update):
    module = copy.deepcopy(attention).requires_grad_(True)
    mean = torch.optim.swa_utils.AveragedModel(module)
    mean.update_parameters(module)
    agent = SoftAttentionAgent(mean.module if update == "mean" else module, env.features)
    batch = {"image": np.arange(5)[:, None], **{n: p for n, p in stack(observations).items() if n != "features"}}
    before, _ = agent.predict(batch)
    again, _ = agent.predict(batch)
    assert np.array_equal(before, again)
    if update == "loaded":
        module.load_state_dict({name: 2 * tensor for name, tensor in attention.state_dict().items()})
    elif update == "bias":
        with torch.no_grad():
            module.key.bias.add_(torch.linspace(-2, 2, len(module.key.bias)))
    else:
        optimiser = (torch.optim.Adam if update == "adam" else torch.optim.SGD)(module.key.parameters(), lr=0.5)
        features = torch.from_numpy(stack(observations)["features"])
        module(features, torch.from_numpy(batch["hidden"]))[:, 0].sum().backward()
        optimiser.step()
        mean.update_parameters(module)
    after, _ = agent.predict(batch)
    fresh, _ = SoftAttentionAgent(agent.module, env.features).predict(batch)
    np.testing.assert_allclose(after, fresh, atol=1e-6)
    assert np.abs(after - before).max() > 1e-3


def test_keys_may_be_computed_once(attention, observations):
    features = torch.from_numpy(stack(observations)["features"])
    hidden = torch.from_numpy(stack(observations)["hidden"])
    cached = attention.scores(attention.keys(features), hidden)
    assert cached.shape == (5, L)
    torch.testing.assert_close(cached, attention(features, hidden))
    over_time = attention.scores(attention.keys(features).unsqueeze(1), hidden.expand(5, 5, -1))  # (B, T, L)
    torch.testing.assert_close(over_time[2, 3], attention(features[[2]], hidden[[3]])[0])


def test_hard_attention_takes_the_argmax(env, attention, observations):
    agent = HardAttentionAgent(attention, env.features)
    for observation in observations:
        expected = alpha_by_hand(attention, observation["features"], observation["hidden"]).argmax()
        assert agent.predict(observation, deterministic=True)[0] == expected


def test_hard_attention_draws_by_alpha(env, attention, observations):
    count = 20_000
    row, observation = 3, by_index(observations[1], 3)
    batch = {name: np.repeat(array[None], count, axis=0) for name, array in observation.items()}
    drawn, _ = HardAttentionAgent(attention, env.features, seed=5).predict(batch)
    expected = alpha_by_hand(attention, np.asarray(env.features[row]), observation["hidden"]) * count
    assert expected.min() > 5
    chi2 = ((np.bincount(drawn, minlength=L) - expected) ** 2 / expected).sum()
    assert chi2 < 84.04  # 0.999 quantile, 48 degrees of freedom


def test_hard_attention_draws_from_its_own_seed(env, attention, observations):
    batch = stack(observations * 8)

    def draws(seed):
        agent = HardAttentionAgent(attention, env.features, seed=seed)
        return [agent.predict(batch)[0].tolist() for _ in range(3)]

    before = torch.random.get_rng_state()
    assert draws(1) == draws(1) != draws(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert draws(1)[0] != draws(1)[1]


def test_log_probability_and_entropy_are_the_categoricals():
    scores = torch.randn(4, 3, L, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    categorical = torch.distributions.Categorical(logits=scores)
    locations = sample_locations(scores.softmax(-1), torch.Generator().manual_seed(1))
    assert locations.shape == (4, 3)
    torch.testing.assert_close(log_probability(scores, locations), categorical.log_prob(locations))
    torch.testing.assert_close(entropy(scores), categorical.entropy())
    torch.testing.assert_close(entropy(torch.full((L,), 7.0)), torch.tensor(float(np.log(L))))


def test_drawn_locations_have_weight():
    alpha = torch.zeros(1000, L)
    alpha[:500, 4] = 1
    alpha[500:, [10, 20]] = 0.5
    drawn = sample_locations(alpha, torch.Generator().manual_seed(0))
    assert set(drawn[:500].tolist()) == {4}
    assert set(drawn[500:].tolist()) == {10, 20}


# --- the wrong image --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 7, 999])
def test_shuffled_attention_sees_the_next_row(env, attention, observations, row):
    shuffled, hard = ShuffledAgent(attention, env.features), HardAttentionAgent(attention, env.features)
    for observation in observations:
        alpha = shuffled.alpha(by_index(observation, row))
        assert torch.equal(alpha, hard.alpha(by_index(observation, (row + 1) % 1000)))
        assert not torch.equal(alpha, hard.alpha(by_index(observation, row)))


def test_shuffled_attention_asks_its_environment_when_the_row_is_not_seen(env, attention, observations):
    agent = ShuffledAgent(attention, env.features, env=env)
    for row in (3, 8):
        observation, _ = env.reset(options={"image": row})
        assert torch.equal(agent.alpha(observation), agent.alpha(by_index(observation, row)))
    with pytest.raises(ValueError, match="observe='index'"):
        agent.predict(stack(observations))
    with pytest.raises(ValueError, match="observe='index'"):
        ShuffledAgent(attention, env.features).predict(observations[0])


def test_shuffled_attention_is_the_shipped_one(captioner, attention_file, tmp_path, monkeypatch):
    spec = find_agent("shuffled", "shapes")
    assert (spec.attention, spec.captioner) == ("hard", "shapes")
    env = gym.make("Glimpse/Shapes-v0", split="val")
    shipped, player = load_attention(ASSETS / "shapes-hard.safetensors"), load_agent("shuffled", env)
    assert torch.equal(player.module.key.weight, shipped.key.weight)
    monkeypatch.setattr("agents.loading.ASSETS", tmp_path)
    with pytest.raises(FileNotFoundError, match="no soft attention is shipped for shapes"):
        find_agent("shuffled", "shapes")
    shutil.copy(attention_file, tmp_path / "shapes-soft.safetensors")
    with pytest.warns(UserWarning, match="belongs to captioner 'shapes'"):
        player = load_agent("shuffled", gym.make("Glimpse/Shapes-v0", split="val", captioner=captioner))
    assert torch.equal(player.module.key.weight, load_attention(attention_file).key.weight)
    assert player.attention == "hard"


# --- scripts ----------------------------------------------------------------------------------------------------------


def test_random_covers_everything_by_its_seed(observations):
    batch = {name: np.repeat(array[None], 4900, axis=0) for name, array in observations[0].items() if name == "word"}
    drawn = RandomAgent(L, seed=3).predict(batch, deterministic=True)[0]
    chi2 = ((np.bincount(drawn, minlength=L) - 100) ** 2 / 100).sum()
    assert chi2 < 84.04  # 0.999 quantile, 48 degrees of freedom
    assert np.array_equal(RandomAgent(L, seed=3).predict(batch)[0], drawn)
    assert not np.array_equal(RandomAgent(L, seed=4).predict(batch)[0], drawn)
    alone = RandomAgent(L)
    assert {int(alone.predict(observations[0])[0]) for _ in range(600)} == set(range(L))
    agent, rng = RandomAgent(L, seed=3), np.random.default_rng(3)
    for count in (None, 5, None, 125):
        batch = observations[0] if count is None else {"word": np.zeros((count, 1), np.int64)}
        assert np.array_equal(agent.predict(batch)[0], rng.integers(L, size=count))


@pytest.mark.parametrize(
    ("grid", "middles"),
    [((7, 7), {24}), ((3, 5), {7}), ((1, 1), {0}), ((14, 14), {90, 91, 104, 105}), ((2, 3), {1, 4}), ((1, 2), {0, 1})],
)
def test_center_is_in_the_middle(grid, middles, observations):
    assert int(CenterAgent(LocationGrid(grid)).predict(observations[0])[0]) in middles


@pytest.mark.parametrize(("locations", "limit"), [(49, 20), (196, 20), (49, 49), (4, 20), (49, 3), (7, 1), (100, 30)])
def test_raster_reads_the_grid_once(locations, limit):
    agent = RasterScanAgent(locations)
    times = np.array([[t / limit] for t in range(limit)], np.float32)
    path = agent.predict({"time": times, "word": np.zeros((limit, 1), np.int64)})[0]
    assert path.tolist() == [t * locations // limit for t in range(limit)]
    assert path[0] == 0
    assert (np.diff(path) >= 0).all()
    assert path[-1] >= locations - 1 - locations / limit
    done = agent.predict({"time": np.ones(1, np.float32), "word": np.zeros(1, np.int64)})[0]
    assert int(done) == locations - 1


def test_raster_follows_an_episodes_clock(env):
    agent, path, ended = RasterScanAgent(L), [], False
    observation, _ = env.reset(seed=0)
    while not ended:
        path.append(int(agent.predict(observation)[0]))
        observation, _, ended, _, _ = env.step(path[-1])
    assert path == [t * 49 // 20 for t in range(len(path))]


def test_uniform_is_one_over_l(observations):
    weights, _ = UniformAgent(10).predict(stack(observations))
    assert np.array_equal(weights, np.full((5, 10), np.float32(0.1)))


MASKS = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0]], np.int8)


@pytest.mark.parametrize(
    ("time", "center", "raster"),
    [(0.0, [1, 4, 4, 4], [0, 1, 0, 4]), (0.5, [1, 4, 4, 4], [1, 4, 3, 4]), (1.0, [1, 4, 4, 4], [2, 5, 5, 4])],
)
def test_scripts_stay_among_the_locations_that_an_image_has(time, center, raster):
    times = np.full((4, 1), time, np.float32)
    batch = {"word": np.zeros((4, 1), np.int64), "time": times, "action_mask": MASKS}
    agents = {"center": CenterAgent(LocationGrid((2, 3))), "raster": RasterScanAgent(6), "uniform": UniformAgent(6)}
    actions = {name: agent.predict(batch)[0] for name, agent in agents.items()}
    assert actions["center"].tolist() == center
    assert actions["raster"].tolist() == raster
    assert np.array_equal(actions["uniform"], (MASKS / MASKS.sum(1, keepdims=True)).astype(np.float32))
    for row in range(4):
        single = {name: values[row] for name, values in batch.items()}
        for name, agent in agents.items():
            assert np.array_equal(agent.predict(single)[0], actions[name][row])


def test_random_covers_the_locations_that_an_image_has():
    agent, batch = RandomAgent(6), {"word": np.zeros((4, 1), np.int64), "action_mask": MASKS}
    drawn = np.stack([agent.predict(batch)[0] for _ in range(200)], 1)
    assert [{*row} for row in drawn.tolist()] == [{*mask.nonzero()[0].tolist()} for mask in MASKS]
    single = {name: values[1] for name, values in batch.items()}
    assert {int(agent.predict(single)[0]) for _ in range(200)} == {1, 3, 4, 5}


# --- the oracle -------------------------------------------------------------------------------------------------------


def say(vocabulary, words, row):
    """The observations of an episode in which ``words`` are said, each with the image's row."""
    ids = [vocabulary.start, *vocabulary.encode(words)]
    return [{"word": np.array([word]), "image": np.array([row])} for word in ids]


def test_the_oracle_follows_the_ground_truth(env):
    vocabulary = env.captioner.vocabulary
    agent = OracleAgent(env.dataset, vocabulary)
    for row in range(30):
        objects = env.dataset.objects(row)
        # The reference that names the objects in reading order.
        words = next(
            words
            for words in env.dataset.references(row)
            if [word for word in words if word in SHAPES] == [thing.shape for thing in objects]
        )
        state, locations = None, []
        for t, observation in enumerate(say(vocabulary, words, row)):
            location, state = agent.predict(observation, state, np.array([t == 0]))
            locations.append(int(location))
        expected = []
        for t in range(len(words) + 1):
            named = sum(word in SHAPES for word in words[:t])
            expected.append(objects[min(named, len(objects) - 1)].tile)
        assert locations == expected
        assert set(locations) == {thing.tile for thing in objects}


def test_the_oracle_forgets_at_an_episodes_start(env):
    vocabulary = env.captioner.vocabulary
    agent = OracleAgent(env.dataset, vocabulary)
    first, second = say(vocabulary, ["circle", "circle"], 0), say(vocabulary, ["is", "circle"], 1)
    batch = [{name: np.stack([a[name], b[name]]) for name in a} for a, b in zip(first, second, strict=True)]
    state = None
    for observation, named in zip(batch, ([0, 0], [1, 0], [2, 1]), strict=True):
        _, state = agent.predict(observation, state, np.zeros(2, bool))
        assert state.tolist() == named
    before = state.copy()
    fresh = {"word": np.full((2, 1), vocabulary.start), "image": np.array([[5], [1]])}
    location, after = agent.predict(fresh, state, np.array([True, False]))
    assert after.tolist() == [0, 1]
    assert location.tolist() == [env.dataset.objects(5)[0].tile, env.dataset.objects(1)[1].tile]
    assert np.array_equal(state, before)  # the caller's state is not changed


def test_the_oracle_asks_its_environment_when_the_row_is_not_seen(env, observations):
    agent = OracleAgent(env.dataset, env.captioner.vocabulary, env)
    for row in (3, 8):
        observation, _ = env.reset(options={"image": row})
        assert agent.predict(observation)[0] == env.dataset.objects(row)[0].tile
    with pytest.raises(ValueError, match="observe='index'"):
        agent.predict(stack(observations))
    with pytest.raises(ValueError, match="observe='index'"):
        OracleAgent(env.dataset, env.captioner.vocabulary).predict(observations[0])


def test_the_oracle_knows_shapes_only():
    class Photographs:
        name = "flickr8k"

    with pytest.raises(ValueError, match="ground truth, which flickr8k does not have"):
        OracleAgent(Photographs(), Vocabulary(SHAPES))


# --- files and names --------------------------------------------------------------------------------------------------


def test_attention_is_saved_in_half_precision(attention, tmp_path):
    path = tmp_path / "deeper" / "attention.safetensors"
    before = torch.random.get_rng_state()
    save_attention(attention, path, {"captioner": "tiny", "scores": [1, 2]})
    loaded = load_attention(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.config == attention.config
    assert not loaded.training
    for (name, tensor), (original_name, original) in zip(
        loaded.state_dict().items(), attention.state_dict().items(), strict=True
    ):
        assert name == original_name
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, original.half().float())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written is left
    save_attention(loaded, path)
    for name, tensor in load_attention(path).state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_damaged_and_foreign_files_are_named(attention_file, captioner_file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(attention_file.read_bytes()[:-40])
    with pytest.raises(FileFormatError, match=r"cut.safetensors"):
        load_attention(cut)
    with pytest.raises(FileFormatError, match=r"captioner.safetensors.*'glimpse-captioner-1'"):
        load_attention(captioner_file)
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors"):
        load_attention(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("name", ["random", "center", "raster", "uniform", "oracle", "no-attention"])
def test_scripted_agents_are_found_by_name(name):
    spec = find_agent(name, "shapes")
    assert name in AGENT_NAMES
    assert spec.attention == ("soft" if name in ("uniform", "no-attention") else "hard")
    assert spec.captioner == ("shapes-no-attention" if name == "no-attention" else None)


def test_an_attention_file_is_played_hard_or_soft(captioner, attention, attention_file, observations):
    hard = GlimpseEnv(split="val", captioner=captioner)
    soft = GlimpseEnv(split="val", captioner=captioner, attention="soft")
    expected = alpha_by_hand(load_attention(attention_file), observations[0]["features"], observations[0]["hidden"])
    played = load_agent(f"soft:{attention_file}", soft)
    assert isinstance(played, SoftAttentionAgent)
    np.testing.assert_allclose(played.predict(observations[0])[0], expected, atol=1e-6)
    for name in (f"hard:{attention_file}", str(attention_file)):
        played = load_agent(name, hard)
        assert isinstance(played, HardAttentionAgent)
        assert played.predict(observations[0], deterministic=True)[0] == expected.argmax()


def test_seeds_reach_the_agents(captioner, attention_file, observations):
    env = gym.make("Glimpse/Shapes-v0", split="val", captioner=captioner)
    batch = stack(observations * 4)
    for name in ("random", f"hard:{attention_file}"):
        first, same, second = (load_agent(name, env, seed).predict(batch)[0].tolist() for seed in (1, 1, 2))
        assert first == same != second


@pytest.mark.parametrize(("name", "env_attention", "cure"), [("random", "soft", "hard"), ("uniform", "hard", "soft")])
def test_agents_refuse_the_other_attention(captioner, name, env_attention, cure):
    env = gym.make("Glimpse/Shapes-v0", captioner=captioner, attention=env_attention)
    message = f"'{name}' makes {cure} attention, but .*attention='{env_attention}'; make it with attention='{cure}'"
    with pytest.raises(ValueError, match=message):
        load_agent(name, env)


def test_files_refuse_the_other_attention(captioner, attention_file):
    with pytest.raises(ValueError, match=r"attention.safetensors' makes soft attention"):
        load_agent(f"soft:{attention_file}", GlimpseEnv(captioner=captioner))


@pytest.mark.parametrize(("sizes", "shown_sizes"), [((8, 13), r"\(8, 13\)"), ((9, 12), r"\(9, 12\)")])
def test_attention_of_another_captioner_is_named(env, tmp_path, sizes, shown_sizes):
    path = tmp_path / "other.safetensors"
    with torch.random.fork_rng(devices=()):
        save_attention(AdditiveAttention(AttentionConfig(*sizes, attention_dim=4)), path)
    with pytest.raises(ValueError, match=rf"other.safetensors.*{shown_sizes}.*\(8, 12\)"):
        load_agent(f"hard:{path}", env)


@pytest.mark.parametrize("name", ["", "clairvoyant", "Random", "clairvoyant:", "runs/agent.zip"])
def test_unknown_names_are_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"unknown agent '{name}'; expected one of soft, hard, reinforce, .*, random"):
        find_agent(name, "shapes")


@pytest.mark.parametrize("name", ["soft", "hard"])
def test_attention_that_is_not_shipped_says_how_to_get_it(name):
    assert not (ASSETS / f"coco-{name}.safetensors").exists()
    with pytest.raises(FileNotFoundError, match=rf"no {name} attention is shipped for coco; .*--dataset coco"):
        find_agent(name, "coco")


def test_a_shipped_attention_is_played_the_other_way_on_the_captioner_it_belongs_to():
    spec, usual = find_agent("hard:soft", "flickr8k"), find_agent("soft", "flickr8k")
    assert (spec.attention, usual.attention) == ("hard", "soft")
    assert spec.captioner == usual.captioner == "flickr8k-soft"
    assert find_agent("soft:hard", "flickr8k").captioner == "flickr8k"


@pytest.mark.parametrize("name", ["gone.safetensors", "soft:gone.safetensors", "hard:gone.safetensors"])
def test_files_that_are_not_there_are_named(name):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        find_agent(name, "shapes")


def test_a_class_of_ones_own_is_imported(captioner, tmp_path, monkeypatch):
    (tmp_path / "corner_agents.py").write_text(
        "import numpy as np\n"
        "class Corner:\n"
        "    attention = 'hard'\n"
        "    def __init__(self, env):\n"
        "        self.last = env.features.shape[1] - 1\n"
        "    def predict(self, observation, state=None, episode_start=None, deterministic=False):\n"
        "        return np.asarray(self.last), state\n"
        "class Vague:\n"
        "    attention = 'both'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = gym.make("Glimpse/Shapes-v0", split="val", captioner=captioner)
    agent = load_agent("corner_agents:Corner", env)
    observation, _ = env.reset(seed=0)
    action, _ = agent.predict(observation)
    observation, *_ = env.step(action)
    assert observation["glimpses"].argmax() == 48
    with pytest.raises(ValueError, match="corner_agents:Vague must have attention = 'hard' or 'soft', got 'both'"):
        find_agent("corner_agents:Vague", "shapes")
    for missing in ("corner_agents:Gone", "no_such_module:Agent"):
        with pytest.raises(ValueError, match=f"no agent class '{missing.split(':')[1]}' in module"):
            find_agent(missing, "shapes")
    (tmp_path / "broken_agents.py").write_text("class Blind:\n    attention = 'hard'\n")
    with pytest.raises(ValueError, match="agent class broken_agents:Blind has no method predict"):
        find_agent("broken_agents:Blind", "shapes")
    (tmp_path / "unfinished_agents.py").write_text("class Torn(:\n")
    with pytest.raises(ValueError, match="no agent class 'Torn' in module 'unfinished_agents': SyntaxError"):
        find_agent("unfinished_agents:Torn", "shapes")


def test_a_run_directory_is_an_agent_on_the_captioner_it_holds(tmp_path, attention_file, captioner_file):
    (tmp_path / "attention.safetensors").write_bytes(attention_file.read_bytes())
    spec = find_agent(str(tmp_path), "shapes")
    assert (spec.attention, spec.captioner) == ("hard", None)
    (tmp_path / "captioner.safetensors").write_bytes(captioner_file.read_bytes())
    assert find_agent(str(tmp_path), "shapes").captioner == str(tmp_path / "captioner.safetensors")


@pytest.mark.parametrize(
    ("name", "command"), [("ppo", "train.sb3"), ("self-critical", "train.reinforce --train-decoder")]
)
def test_agents_that_are_not_shipped_name_the_command_that_trains_them(name, command):
    with pytest.raises(
        FileNotFoundError, match=rf"no {name} attention is shipped for coco; train it with `python -m {command}"
    ):
        find_agent(name, "coco")


def test_an_agent_on_another_captioner_than_its_own_is_told_of(recwarn):
    arguments = {"split": "val", "attention": "soft"}
    load_agent("hard", gym.make("Glimpse/Shapes-v0", split="val"))
    load_agent("no-attention", gym.make("Glimpse/Shapes-v0", captioner="shapes-no-attention", **arguments))
    assert not [warning for warning in recwarn if "belongs to captioner" in str(warning.message)]
    env = gym.make("Glimpse/Shapes-v0", **arguments)
    with pytest.warns(UserWarning, match=r"'no-attention' belongs to .*make it with captioner='shapes-no-attention'"):
        load_agent("no-attention", env)


def test_an_agent_must_say_how_it_acts():
    with pytest.raises(TypeError, match="abstract"):
        StatelessAgent()
