"""The command ``python -m train.captioner``, which trains a captioner by cross-entropy."""

from train.captioner.options import Options
from train.captioner.trainer import main

__all__ = ["Options", "main"]
