"""The command ``python -m train.caption``."""

from train.caption.runner import Options, main

__all__ = ["Options", "main"]
