"""Run ``python -m train.cards``."""

from train.cards import Options, main
from train.common.cli import run_command

if __name__ == "__main__":
    run_command(main, Options)
