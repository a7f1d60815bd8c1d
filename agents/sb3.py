"""The vector environment as a VecEnv of Stable-Baselines3, and the policies for its algorithms."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.pointer import (
    GlimpseExtractor,
    GlimpsePolicy,
    GlimpseQPolicy,
    MaskableGlimpsePolicy,
    RecurrentGlimpsePolicy,
)
from glimpse_env.datasets import world_of
from glimpse_env.envs.vector import GlimpseVectorEnv

__all__ = [
    "GlimpseExtractor",
    "GlimpsePolicy",
    "GlimpseQPolicy",
    "GlimpseVecEnv",
    "MaskableGlimpsePolicy",
    "RecurrentGlimpsePolicy",
]


class GlimpseVecEnv(VecEnv):
    """N environments of a registered id for Stable-Baselines3's algorithms, with one decoder step for all.

    An episode that ends is reset at once; its last observation is ``infos[i]["terminal_observation"]``, beside
    ``caption``, ``image_id`` and metrics such as ``bleu``. Environment i, seeded with s + i by ``seed(s)``, is a
    single one seeded so. ``task`` holds the other arguments of ``GlimpseVectorEnv``.

    Raises:
        ValueError: there is no such id, or as ``GlimpseVectorEnv``.
    """

    def __init__(self, env_id: str, num_envs: int, **task: Any) -> None:
        self.env = GlimpseVectorEnv(num_envs, world_of(env_id).name, autoreset_mode=AutoresetMode.SAME_STEP, **task)
        self._actions: Any = None
        self._masks = np.ones((num_envs, self.env.features.shape[1]), bool)
        super().__init__(num_envs, self.env.single_observation_space, self.env.single_action_space)

    def reset(self) -> dict[str, npt.NDArray[Any]]:
        """Start N captions, of the images named with ``set_options`` if any are, and return their observations."""
        names = sorted({name for options in self._options for name in options}, key=str)
        options = {name: [env_options.get(name) for env_options in self._options] for name in names}
        observation, infos = self.env.reset(seed=self._seeds, options=options)
        self._masks = infos["action_mask"].astype(bool)
        self.reset_infos = [{"action_mask": mask} for mask in infos["action_mask"]]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Set the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step: observations, rewards (N,), float32, ends (N,), and an info of each environment."""
        observation, rewards, ended, _, env_infos = self.env.step(self._actions)
        self._masks = env_infos["action_mask"].astype(bool)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for slot in ended.nonzero()[0].tolist():
            infos[slot]["terminal_observation"] = env_infos["final_obs"][slot]
            final = env_infos["final_info"].items()
            infos[slot] |= {name: values[slot] for name, values in final if name[0] != "_" and name != "action_mask"}
        return observation, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Which locations the images have, (N, L)."""
        return self._masks

    def get_images(self) -> list[npt.NDArray[np.uint8] | None]:
        """A frame of every environment, with ``render_mode="rgb_array"``."""
        return list(self.env.render() or [None] * self.num_envs)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vector environment, or of its task, once for each of ``indices``."""
        owner = next((source for source in (self.env, self.env.task) if hasattr(source, attr_name)), None)
        if owner is None:
            raise AttributeError(f"neither {type(self.env).__name__} nor its task has {attr_name!r}")
        return [getattr(owner, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused with an AttributeError: the episodes share one task."""
        raise AttributeError(f"{attr_name!r} cannot be set; the environments share one task, make them with it")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call ``action_masks``, which MaskablePPO calls on every environment; AttributeError for any other method."""
        if method_name != "action_masks":
            raise AttributeError(f"environments of a batch have no method {method_name!r}; there is action_masks")
        return [self._masks[slot] for slot in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        """Whether ``get_attr`` or ``env_method`` takes a name."""
        return attr_name == "action_masks" or hasattr(self.env, attr_name) or hasattr(self.env.task, attr_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """No environment is wrapped."""
        return [False] * len(list(self._get_indices(indices)))
