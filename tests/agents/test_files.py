"""Weights files: an evaluation opens the agent's and the captioner's once each."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from weakref import WeakValueDictionary

import pytest

from agents.loading import find_attention, load_agent, shipped_attention
from agents.policy_agent import POLICIES, save_policy
from glimpse_env import FileFormatError, GlimpseEnv
from glimpse_env.core import safetensors_files
from glimpse_env.core.safetensors_files import read_tensors, write_tensors
from glimpse_env.envs import shared_assets
from glimpse_env.models.captioner import captioner_path
from train.evaluate import Options, main


@pytest.fixture
def opened(monkeypatch):
    """How often each weights file is opened."""
    counts: Counter[Path] = Counter()
    safe_open = safetensors_files.safe_open

    def counting(path, *args, **kwargs):
        counts[Path(path)] += 1
        return safe_open(path, *args, **kwargs)

    monkeypatch.setattr(safetensors_files, "safe_open", counting)
    monkeypatch.setattr(shared_assets, "_ASSETS", WeakValueDictionary())  # no environment of another test is alive
    return counts


def soft(name):
    return shipped_attention("soft", name)  # which the glimpses are compared with


@pytest.mark.parametrize("spread", [0, 2])
@pytest.mark.parametrize("agent", ["reinforce", "soft", "shuffled"])
def test_of_a_shipped_agent(opened, agent, spread):
    main(Options(agent=agent, limit=2, spread=spread))
    file = shipped_attention("hard" if agent == "shuffled" else agent, "shapes")
    assert opened == {file: 1, captioner_path("shapes"): 1, soft("shapes"): 1}


@pytest.mark.parametrize("mode", ["", "hard:", "soft:", "shuffled:"])
def test_of_an_attention_file(opened, attention_file, captioner_file, mode):
    main(Options(agent=f"{mode}{attention_file}", captioner=str(captioner_file), limit=2))
    assert opened == {attention_file: 1, captioner_file: 1, soft("shapes"): 1}


@pytest.mark.parametrize("mode", ["", "soft:"])
def test_of_a_run_directory(opened, attention_file, captioner_file, tmp_path, mode):
    for file in (attention_file, captioner_file):
        shutil.copy(file, tmp_path / file.name)
    main(Options(agent=f"{mode}{tmp_path}", limit=2))
    files = {tmp_path / "attention.safetensors": 1, tmp_path / "captioner.safetensors": 1}
    assert opened == {**files, soft("shapes"): 1}


@pytest.mark.parametrize("is_directory", [True, False])
def test_of_a_policy(opened, captioner, captioner_file, tmp_path, is_directory):
    env = GlimpseEnv(split="val", captioner=captioner)
    config = {"attention_dim": 6, "places": True}
    arguments = {"features_extractor_kwargs": config, "lstm_hidden_size": 8}
    policy = POLICIES["recurrent-ppo"](env.observation_space, env.action_space, lambda _: 0.0, **arguments)
    path = tmp_path / "policy.safetensors"
    save_policy(policy, path, {"algo": "recurrent-ppo", "observe": "features", **config}, {})
    main(Options(agent=str(tmp_path if is_directory else path), captioner=str(captioner_file), limit=2))
    assert opened == {path: 1, captioner_file: 1, soft("shapes"): 1}


def test_of_an_agent_that_is_loaded_for_its_environment(opened):
    load_agent("hard", GlimpseEnv(split="val"))
    assert opened == {shipped_attention("hard", "shapes"): 1, captioner_path("shapes"): 1}


def test_a_file_of_another_kind_names_the_kinds_that_agents_have(captioner_file, attention_file, tmp_path):
    with pytest.raises(FileFormatError, match=r"'glimpse-captioner-1', expected 'glimpse-attention-1' or 'glimpse-pol"):
        find_attention(str(captioner_file), "shapes")
    tensors, metadata = read_tensors(attention_file, "glimpse-attention-1")
    write_tensors(tmp_path / "a.safetensors", tensors, {**metadata, "notes": {"env": "Glimpse/Coco-v0"}})
    with pytest.raises(ValueError, match=r"was trained in Glimpse/Coco-v0, not in Glimpse/Shapes-v0"):
        find_attention(str(tmp_path / "a.safetensors"), "shapes")
