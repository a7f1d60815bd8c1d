"""The command ``python -m train.throughput``."""

from train.throughput.command import Options, main

__all__ = ["Options", "main"]
