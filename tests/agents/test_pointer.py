"""Policies that point: logits are additive attention scores, whatever observations carry and whoever trains them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO

from agents.attention_agents import HardAttentionAgent
from agents.pointer import GlimpsePolicy, GlimpseQPolicy, MaskableGlimpsePolicy, RecurrentGlimpsePolicy
from agents.sb3 import GlimpseVecEnv

N, L = 3, 49
ALGORITHMS = [
    (PPO, GlimpsePolicy, {"n_steps": 8, "batch_size": 24}),
    (A2C, GlimpsePolicy, {"n_steps": 8}),
    (DQN, GlimpseQPolicy, {"learning_starts": 8, "train_freq": 4, "buffer_size": 500, "batch_size": 16}),
    (MaskablePPO, MaskableGlimpsePolicy, {"n_steps": 8, "batch_size": 24}),
    (RecurrentPPO, RecurrentGlimpsePolicy, {"n_steps": 8, "batch_size": 24}),
]


@pytest.fixture
def make(captioner):
    def build(observe="index", **options):
        task = {"split": "val", "captioner": captioner, "max_caption_length": 5, **options}
        return GlimpseVecEnv("Glimpse/Shapes-v0", N, observe=observe, **task)

    return build


def policy_options(envs, **options):
    table = {"table": envs.env.features} if "image" in envs.observation_space.spaces else {}
    return {"features_extractor_kwargs": {"attention_dim": 6, **table, **options}}


def tensors(observation):
    return {name: torch.from_numpy(array) for name, array in observation.items()}


@pytest.mark.parametrize(
    ("algorithm", "policy", "options"), ALGORITHMS, ids=lambda value: getattr(value, "__name__", "")
)
@pytest.mark.parametrize("observe", ["index", "features", "glimpsed"])
def test_every_algorithm_trains_it(make, algorithm, policy, options, observe):
    envs = make(observe)
    kwargs = policy_options(envs, places=observe == "glimpsed")
    model = algorithm(policy, envs, seed=0, policy_kwargs=kwargs, **options)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(72)
    moved = [name for name, value in model.policy.state_dict().items() if not torch.equal(value, before[name])]
    assert any("pointer.query" in name for name in moved)
    assert any("features_extractor.key" in name for name in moved)
    assert any("places" in name or "place" in name for name in moved) == (observe == "glimpsed")
    actions, _ = model.predict(envs.reset(), deterministic=True)
    assert envs.action_space.contains(actions[0])


@pytest.mark.parametrize(("algorithm", "policy"), [(PPO, GlimpsePolicy), (MaskablePPO, MaskableGlimpsePolicy)])
def test_logits_are_the_scores_of_an_attention_that_an_agent_plays(make, algorithm, policy):
    envs = make()
    model = algorithm(policy, envs, seed=0, policy_kwargs=policy_options(envs))
    observation = envs.reset()
    agent = HardAttentionAgent(model.policy.attention, envs.env.features)
    probabilities = model.policy.get_distribution(tensors(observation)).distribution.probs
    torch.testing.assert_close(probabilities.detach(), agent.alpha(observation), atol=1e-6, rtol=1e-5)
    assert probabilities.std() > 0


def test_rows_and_features_say_the_same(make):
    by_row, by_value = make("index"), make("features")
    policies = [
        PPO(GlimpsePolicy, envs, seed=0, policy_kwargs=policy_options(envs)).policy for envs in (by_row, by_value)
    ]
    policies[1].load_state_dict(policies[0].state_dict())
    for envs in (by_row, by_value):
        envs.seed(3)
    logits = [
        policy.get_distribution(tensors(envs.reset())).distribution.logits
        for policy, envs in zip(policies, (by_row, by_value), strict=True)
    ]
    torch.testing.assert_close(*logits)
    assert sum(value.numel() for value in policies[0].state_dict().values()) < 20_000  # the table is no parameter


def test_unseen_places_are_told_apart_only_by_their_places(make):
    envs = make("glimpsed")
    observation = tensors(envs.reset())
    blind = PPO(GlimpsePolicy, envs, seed=0, policy_kwargs=policy_options(envs)).policy
    assert blind.get_distribution(observation).distribution.probs.std() < 1e-7
    seeing = PPO(GlimpsePolicy, envs, seed=0, policy_kwargs=policy_options(envs, places=True)).policy
    with torch.no_grad():
        seeing.features_extractor.place.normal_(generator=torch.Generator().manual_seed(0))
    assert seeing.get_distribution(observation).distribution.probs.std() > 1e-4


def test_a_recurrent_policy_remembers(make):
    envs = make("glimpsed")
    policy = RecurrentPPO(RecurrentGlimpsePolicy, envs, seed=0, policy_kwargs=policy_options(envs, places=True)).policy
    with torch.no_grad():
        policy.features_extractor.place.normal_(generator=torch.Generator().manual_seed(0))
    observation = envs.reset()
    _, state = policy.predict(observation, episode_start=np.ones(N, bool))
    starts = torch.zeros(N)
    probabilities = [
        policy.get_distribution(tensors(observation), tuple(map(torch.from_numpy, past)), starts)[0].distribution.probs
        for past in (state, tuple(np.zeros_like(array) for array in state))
    ]
    assert (probabilities[0] - probabilities[1]).abs().max() > 1e-6


def test_dqn_is_refused_where_images_lack_locations():
    observations = spaces.Dict({"action_mask": spaces.MultiBinary(10)})
    with pytest.raises(ValueError, match="random locations, which some images here lack; train with ppo"):
        GlimpseQPolicy(observations, spaces.Discrete(10), lambda _: 1e-3)


def test_what_cannot_point_is_refused(make):
    with pytest.raises(ValueError, match=r"point at one location.*attention='hard'"):
        PPO(GlimpsePolicy, make("features", attention="soft"))
    with pytest.raises(ValueError, match="point at one location"):
        GlimpseQPolicy(
            *(getattr(make("features", attention="soft"), f"{name}_space") for name in ("observation", "action"))
        )
    with pytest.raises(ValueError, match=r"a table of 1000 images.*given none; pass features_extractor_kwargs="):
        PPO(GlimpsePolicy, make())
    envs, test_envs = make(), make(split="test")
    assert len(envs.env.features) == len(test_envs.env.features)
    with pytest.raises(ValueError, match="given one of 20000"):
        PPO(
            GlimpsePolicy,
            envs,
            policy_kwargs={"features_extractor_kwargs": {"table": make(split="train").env.features}},
        )
