"""Run ``python -m train.rllib``."""

from train.common.cli import run_command
from train.rllib import Options, main

if __name__ == "__main__":
    run_command(main, Options)
