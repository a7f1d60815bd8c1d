"""Run ``python -m glimpse_env.play``."""

from glimpse_env.play.game import main

main()
