"""The command ``python -m train.captioner``."""

from train.captioner.options import Options
from train.captioner.trainer import main

__all__ = ["Options", "main"]
