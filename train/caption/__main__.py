"""Run ``python -m train.caption``."""

from train.caption import Options, main
from train.common.cli import run_command

if __name__ == "__main__":
    run_command(main, Options)
