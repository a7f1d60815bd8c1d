"""The command ``python -m train.benchmark``."""

from train.benchmark.command import Options, main

__all__ = ["Options", "main"]
