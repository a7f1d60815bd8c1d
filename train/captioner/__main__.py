"""Run ``python -m train.captioner``."""

from train.captioner import Options, main
from train.common.cli import run_command

run_command(main, Options)
