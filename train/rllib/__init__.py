"""The command ``python -m train.rllib``."""

from train.rllib.options import Options
from train.rllib.trainer import main

__all__ = ["Options", "main"]
