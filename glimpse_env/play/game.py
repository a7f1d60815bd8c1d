"""Play by hand: choose the glimpses with mouse or keys, and compare the caption's reward with those of agents.

Rewards of agents come from the leaderboard of the package; random agents are run when an image is opened.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import Error
from PIL import Image

from glimpse_env.datasets import WORLDS, world_of
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.play.leaderboard import Leaderboard, load_leaderboard
from glimpse_env.play.scoreboard import Row, render_scoreboard
from glimpse_env.rendering.drawing import PAPER, draw_box
from glimpse_env.rendering.frames import PICTURE_WIDTH
from glimpse_env.rendering.tiles import check_grid, location_at, location_box, picture_size, shifted_location
from glimpse_env.rendering.window import Window

if TYPE_CHECKING:
    from pygame.event import Event

SCOREBOARD_WIDTH = 336  # pixels
RANDOM_EPISODES = 16  # episodes of a random agent on every image
KEYS = [("click, space", "look there"), ("arrows", "move"), ("r", "again"), ("n", "next image"), ("q", "quit")]


class Game:
    """A person at an environment: a cursor on the grid, the caption, and rewards of agents on the same image.

    The ``leaderboard`` is of the environment's split; ``seed`` is for the order of images and for the random agent.

    Raises:
        ValueError: the environment is soft or renders no frames, or the seed is negative.
    """

    def __init__(self, env: GlimpseEnv, leaderboard: Leaderboard, seed: int = 0) -> None:
        if env.task.attention != "hard" or env.render_mode != "rgb_array":
            raise ValueError("a person plays one location a word; make the environment hard, with rgb_array frames")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.env, self.leaderboard = env, leaderboard
        ranked, dataset = {*leaderboard.images}, env.dataset
        self._rows = [row for row in range(len(dataset)) if dataset.image_id(row) in ranked] or range(len(dataset))
        self.rng = np.random.default_rng(seed)
        grid = env.captioner.encoder.grid
        self.grid, self.picture_size, self.cursor = check_grid(grid), picture_size(grid, PICTURE_WIDTH), grid.center
        self.ended = False
        self.info: dict[str, Any] = {}
        self.reward = 0.0
        self.agent_rewards: dict[str, float] = {}

    def next_image(self, row: int | None = None) -> None:
        """Start on another image: ``row``, or one drawn from those on the leaderboard, else from the split."""
        if row is None:
            row = self._rows[int(self.rng.integers(len(self._rows)))]
        random = [self._random_reward(row) for _ in range(RANDOM_EPISODES)]
        self.agent_rewards = {
            **self.leaderboard.of(self.env.dataset.image_id(row)),
            f"random, best of {RANDOM_EPISODES}": max(random),
            f"random, mean of {RANDOM_EPISODES}": float(np.mean(random)),
        }
        self._start(row)

    def restart(self) -> None:
        """Start on the same image."""
        self._start(self.env.row)

    def _start(self, row: int) -> None:
        self._mask = self.env.reset(options={"image": row})[1]["action_mask"]
        self.ended, self.info, self.reward = False, {}, 0.0
        self._draw()

    def _random_reward(self, row: int) -> float:
        """Reward of an episode with random glimpses."""
        locations = self.env.reset(options={"image": row})[1]["action_mask"].nonzero()[0]
        ended, total = False, 0.0
        while not ended:
            _, reward, ended, _, _ = self.env.step(int(locations[self.rng.integers(len(locations))]))
            total += float(reward)
        return total

    def glimpse(self, location: int | None = None) -> None:
        """Look at a location, by default the cursor's; not when the caption is complete or the image lacks it."""
        location = self.cursor if location is None else location
        if self.ended or not self._mask[location]:
            return
        self.cursor = location
        _, reward, self.ended, _, self.info = self.env.step(self.cursor)
        self.reward += float(reward)
        self._draw()

    def move(self, down: int, right: int) -> None:
        """Move the cursor; it stops at the edges."""
        self.cursor = shifted_location(self.cursor, down, right, self.grid)

    def location_at(self, x: int, y: int) -> int | None:
        """The location under a pixel of the frame; None outside the picture."""
        return location_at(x, y, self.grid, self.picture_size)

    def scores(self) -> list[Row]:
        """Rewards of the player and the agents on this image, the best first; empty until the caption is complete."""
        if not self.ended:
            return []
        agents = [Row(name, reward) for name, reward in self.agent_rewards.items()]
        return sorted([Row("you", self.reward, is_player=True), *agents], key=lambda row: -row.reward)

    def report(self) -> str:
        """The finished caption and the rewards as a line."""
        rewards = ", ".join(f"{row.name} {row.reward:.3f}" for row in self.scores())
        return f"{self.info['image_id']}: {self.info['caption']} | {rewards}"

    def frame(self) -> npt.NDArray[np.uint8]:
        """The picture with the cursor, the caption below it and the scoreboard on the right: uint8 (H, W, 3)."""
        picture = Image.fromarray(self._rendered)
        if not self.ended:
            draw_box(picture, location_box(self.cursor, self.grid, self.picture_size), PAPER)
        reference = " ".join(self.env.dataset.references(self.env.row)[0])
        scoreboard = render_scoreboard(
            self.env.dataset.image_id(self.env.row),
            self.scores(),
            f"People say: {reference}" if self.ended else "Every glimpse is a word. What is worth a look?",
            KEYS,
            width=SCOREBOARD_WIDTH,
            height=picture.height,
        )
        return np.concatenate([np.asarray(picture), np.asarray(scoreboard)], axis=1)

    def _draw(self) -> None:
        self._rendered = cast(npt.NDArray[np.uint8], self.env.render())


def play(game: Game, window: Window) -> None:
    """Let a person play until the window is closed or q is pressed."""
    import pygame

    frame = game.frame()
    while True:
        window.show(frame)
        events = pygame.event.get()
        for event in events:
            ended = game.ended
            if not _handle(event, game):
                return
            if game.ended and not ended:
                print(game.report())
        if events:
            frame = game.frame()


def _handle(event: Event, game: Game) -> bool:
    """Do what an event asks for; False ends the game."""
    import pygame

    steps = {pygame.K_UP: (-1, 0), pygame.K_DOWN: (1, 0), pygame.K_LEFT: (0, -1), pygame.K_RIGHT: (0, 1)}
    if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key in (pygame.K_q, pygame.K_ESCAPE)):
        return False
    if event.type in (pygame.MOUSEMOTION, pygame.MOUSEBUTTONDOWN):
        location = game.location_at(*event.pos)
        if location is not None and event.type == pygame.MOUSEMOTION:
            game.cursor = location
        elif location is not None and event.button == 1:
            game.glimpse(location)
    elif event.type == pygame.KEYDOWN:
        if event.key in steps:
            game.move(*steps[event.key])
        elif event.key in (pygame.K_SPACE, pygame.K_RETURN):
            game.glimpse()
        elif event.key == pygame.K_r:
            game.restart()
        elif event.key == pygame.K_n:
            game.next_image()
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Read options, open a window and play."""
    parser = argparse.ArgumentParser(prog="python -m glimpse_env.play", description=__doc__)
    ids = ",".join(world.env_id for world in WORLDS.values())
    parser.add_argument("--env", default="Glimpse/Shapes-v0", metavar=f"{{{ids}}}", help="environment id")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--image", type=int, metavar="ROW", help="the first image; else one is drawn")
    parser.add_argument(
        "--captioner", help="shipped captioner or file; what agents earned is shown for the shipped one"
    )
    parser.add_argument("--data-root", help="folder the dataset lies in; else $GLIMPSE_DATA/<dataset>")
    parser.add_argument("--seed", type=int, default=0, help="of the order of images and of random paths")
    options = parser.parse_args(arguments)
    try:
        _play(options)
    except (ValueError, OSError, ImportError, Error) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _play(options: argparse.Namespace) -> None:
    world = world_of(options.env).name
    window = Window(fps=30, caption=f"glimpse-env: {options.env}")
    env = gym.make(
        options.env,
        split=options.split,
        captioner=options.captioner,
        data_root=options.data_root,
        render_mode="rgb_array",
        disable_env_checker=True,
    )
    with closing(window), env:
        leaderboard = Leaderboard({}, []) if options.captioner else load_leaderboard(world, options.split)
        game = Game(cast(GlimpseEnv, env.unwrapped), leaderboard, options.seed)
        game.next_image(options.image)
        play(game, window)
