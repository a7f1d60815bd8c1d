"""Hard attention as a Gymnasium environment: an agent chooses glimpses, a decoder writes, BLEU is the reward.

Importing this package registers the ``Glimpse/…`` ids.
"""

from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.core.safetensors_files import FileFormatError
from glimpse_env.datasets import CaptionDataset, DataError, DatasetSpec, make_dataset
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.metrics.rewards import RewardFn, register_reward
from glimpse_env.models.captioner import Captioner, load_captioner, save_captioner
from glimpse_env.registration import register_environments, register_world
from glimpse_env.rollout.beam_search import BeamSearch, Captioned
from glimpse_env.rollout.decode import decode
from glimpse_env.rollout.word_sampling import WordSampling

__version__ = "0.1.0"

__all__ = [
    "BeamSearch",
    "CaptionDataset",
    "Captioned",
    "Captioner",
    "DataError",
    "DatasetSpec",
    "FileFormatError",
    "GlimpseEnv",
    "LocationGrid",
    "RewardFn",
    "WordSampling",
    "__version__",
    "decode",
    "load_captioner",
    "make_dataset",
    "register_reward",
    "register_world",
    "save_captioner",
]

register_environments()
