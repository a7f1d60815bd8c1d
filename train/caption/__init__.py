"""The command ``python -m train.caption``."""

from train.caption.command import Options, main

__all__ = ["Options", "main"]
