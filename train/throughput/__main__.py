"""Run ``python -m train.throughput``."""

from train.common.cli import run_command
from train.throughput import Options, main

if __name__ == "__main__":
    run_command(main, Options)
