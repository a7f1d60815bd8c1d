"""Run ``python -m train.sb3``."""

from train.common.cli import run_command
from train.sb3 import Options, main

run_command(main, Options)
