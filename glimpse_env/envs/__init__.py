"""The Gymnasium environments: one caption, or N captions, over the same dynamics."""

from glimpse_env.envs.base import GlimpseBase
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv

__all__ = ["GlimpseBase", "GlimpseEnv", "GlimpseVectorEnv"]
