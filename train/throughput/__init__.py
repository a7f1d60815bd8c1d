"""The command ``python -m train.throughput``."""

from train.throughput.runner import Options, main

__all__ = ["Options", "main"]
