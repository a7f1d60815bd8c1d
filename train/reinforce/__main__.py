"""Run ``python -m train.reinforce``."""

from train.common.cli import run_command
from train.reinforce import Options, main

if __name__ == "__main__":
    run_command(main, Options)
