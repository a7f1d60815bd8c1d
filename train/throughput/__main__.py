"""Run ``python -m train.throughput``."""

from train.common.cli import run_command
from train.throughput import Options, main

run_command(main, Options)
