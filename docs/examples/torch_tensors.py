"""Gymnasium's NumpyToTorch on the environments: observations, rewards and infos as tensors.

Gymnasium's conversion (1.2 to 1.4) knows numbers alone: of a string in an info it makes the text of a generator, and an
array of objects, such as the vector environments' ``caption`` or Gymnasium's own ``final_obs``, it refuses. The two
functions registered here let both pass as they are.

    python docs/examples/torch_tensors.py
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import NumpyToTorch, array_conversion
from gymnasium.wrappers.vector import NumpyToTorch as VectorNumpyToTorch

numbers = array_conversion.array_conversion.dispatch(np.ndarray)


@array_conversion.array_conversion.register
def _text(value: str, xp: Any, device: Any = None) -> str:
    return value


@array_conversion.array_conversion.register
def _array(value: np.ndarray, xp: Any, device: Any = None) -> Any:
    return value if value.dtype == object else numbers(value, xp, device)


def one() -> dict[str, Any]:
    """An episode of random glimpses; its last info."""
    env = NumpyToTorch(gym.make("glimpse_env:Glimpse/Shapes-v0", split="test"))
    observation, info = env.reset(seed=0)
    ended = False
    while not ended:
        location = torch.randint(observation["features"].shape[0], ())
        observation, _, ended, _, info = env.step(location)
    return info


def many(num_envs: int = 8) -> torch.Tensor:
    """Rewards of the first ``num_envs`` captions or more that end."""
    envs = gym.make_vec("glimpse_env:Glimpse/Shapes-v0", num_envs=num_envs, split="test", autoreset_mode="SameStep")
    envs = VectorNumpyToTorch(envs)
    observations, _ = envs.reset(seed=0)
    earned = torch.empty(0)
    while len(earned) < num_envs:
        locations = torch.randint(observations["features"].shape[1], (num_envs,))
        observations, rewards, terminations, _, _ = envs.step(locations)
        earned = torch.cat([earned, rewards[terminations].float()])
    return earned


if __name__ == "__main__":
    info = one()
    print(info["caption"], info["bleu"])
    print(many().mean())
