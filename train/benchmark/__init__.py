"""The command ``python -m train.benchmark``."""

from train.benchmark.options import Options
from train.benchmark.runner import main

__all__ = ["Options", "main"]
