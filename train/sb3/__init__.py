"""The command ``python -m train.sb3``."""

from train.sb3.options import Options
from train.sb3.trainer import main

__all__ = ["Options", "main"]
