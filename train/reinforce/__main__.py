"""Run ``python -m train.reinforce``."""

from train.common.cli import run_command
from train.reinforce import Options, main

run_command(main, Options)
