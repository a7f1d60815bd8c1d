"""The command ``python -m train.cards``."""

from train.cards.command import Options, main

__all__ = ["Options", "main"]
