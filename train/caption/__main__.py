"""Run ``python -m train.caption``."""

from train.caption import Options, main
from train.common.cli import run_command

run_command(main, Options)
