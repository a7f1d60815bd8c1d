"""Run ``python -m train.rllib``."""

from train.common.cli import run_command
from train.rllib import Options, main

run_command(main, Options)
