"""The command ``python -m train.reinforce``."""

from train.reinforce.options import Options
from train.reinforce.trainer import main

__all__ = ["Options", "main"]
