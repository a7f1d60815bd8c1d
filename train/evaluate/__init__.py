"""The command ``python -m train.evaluate``."""

from train.evaluate.evaluation import Options, main

__all__ = ["Options", "main"]
