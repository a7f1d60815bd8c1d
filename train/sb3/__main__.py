"""Run ``python -m train.sb3``."""

from train.common.cli import run_command
from train.sb3 import Options, main

if __name__ == "__main__":
    run_command(main, Options)
