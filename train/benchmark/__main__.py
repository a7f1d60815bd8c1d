"""Run ``python -m train.benchmark``."""

from train.benchmark import Options, main
from train.common.cli import run_command

run_command(main, Options)
