"""Play the environment by hand, and compare your rewards with those of agents."""

from glimpse_env.play.game import Game, play
from glimpse_env.play.leaderboard import Leaderboard, load_leaderboard

__all__ = ["Game", "Leaderboard", "load_leaderboard", "play"]
