"""Run ``python -m train.evaluate``."""

from train.common.cli import run_command
from train.evaluate import Options, main

run_command(main, Options)
