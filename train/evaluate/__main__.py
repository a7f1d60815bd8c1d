"""Run ``python -m train.evaluate``."""

from train.common.cli import run_command
from train.evaluate import Options, main

if __name__ == "__main__":
    run_command(main, Options)
