"""Hard attention as a Gymnasium environment: an agent looks, a decoder speaks, BLEU judges.

Importing this package registers the ``Glimpse/…`` ids.
"""

from glimpse_env.beam import BeamSearch, Captioned
from glimpse_env.captioner import Captioner, load_captioner, save_captioner
from glimpse_env.datasets import CaptionDataset, DataError, make_dataset
from glimpse_env.decoding import decode
from glimpse_env.env import GlimpseEnv
from glimpse_env.registration import register_environments
from glimpse_env.reward import RewardFn, register_reward
from glimpse_env.sampling import WordSampling
from glimpse_env.weights import FileFormatError

__version__ = "0.1.0"

__all__ = [
    "BeamSearch",
    "CaptionDataset",
    "Captioned",
    "Captioner",
    "DataError",
    "FileFormatError",
    "GlimpseEnv",
    "RewardFn",
    "WordSampling",
    "__version__",
    "decode",
    "load_captioner",
    "make_dataset",
    "register_reward",
    "save_captioner",
]

register_environments()
