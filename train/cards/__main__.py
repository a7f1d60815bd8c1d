"""Run ``python -m train.cards``."""

from train.cards import Options, main
from train.common.cli import run_command

run_command(main, Options)
