"""The command ``python -m train.cards``."""

from train.cards.runner import Options, main

__all__ = ["Options", "main"]
