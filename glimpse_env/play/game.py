"""Play by hand: choose the glimpses with mouse or keys, and see what the caption earned beside what agents earned.

Knows one environment, a window and the standings that come with the package. It does not know agents: what they earned
is in a file, and random paths are played here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import Error
from PIL import Image

from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.play.leaderboard import Standings, load_standings
from glimpse_env.play.scoreboard import Row, render_board
from glimpse_env.registration import IDS
from glimpse_env.rendering.drawing import PAPER, draw_box, tile_of
from glimpse_env.rendering.window import Window

BOARD = 336  # pixels, width of the panel
PATHS = 16  # random paths that are played on every image
KEYS = [
    ("click, space", "look there"),
    ("arrows", "move"),
    ("r", "again"),
    ("n", "next image"),
    ("q", "quit"),
]


class Game:
    """A person at an environment: a cursor on the grid, captions, and what others earned on the same image.

    Args:
        env: with ``attention="hard"`` and ``render_mode="rgb_array"``.
        standings: what agents earned on the images of its split.
        seed: of the order of images and of random paths.

    Raises:
        ValueError: the environment is soft, or makes no frames; or the seed is negative.
    """

    def __init__(self, env: GlimpseEnv, standings: Standings, seed: int = 0) -> None:
        if env.task.attention != "hard" or env.render_mode != "rgb_array":
            raise ValueError("a person plays one location a word; make the environment hard, with rgb_array frames")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.env = env
        self.standings = standings
        played, dataset = {*standings.images}, env.dataset
        self._rows = [row for row in range(len(dataset)) if dataset.image_id(row) in played] or range(len(dataset))
        self.rng = np.random.default_rng(seed)
        self.grid = env.captioner.encoder.config.grid
        self.cursor = (self.grid[0] // 2) * self.grid[1] + self.grid[1] // 2
        self.ended = False
        self.info: dict[str, Any] = {}
        self.reward = 0.0
        self.others: dict[str, float] = {}

    @property
    def size(self) -> int:
        """Side of the picture on the frame, in pixels; the panel is to its right, the caption below."""
        return int(self._drawn.shape[1])

    def next(self, row: int | None = None) -> None:
        """Start on another image: ``row``, or one drawn from those with standings, else from the whole split."""
        if row is None:
            row = self._rows[int(self.rng.integers(len(self._rows)))]
        random = self._random_paths(row)
        self.others = {
            **self.standings.of(self.env.dataset.image_id(row)),
            f"random, best of {PATHS}": max(random),
            f"random, mean of {PATHS}": float(np.mean(random)),
        }
        self._start(row)

    def again(self) -> None:
        """Start on the same image."""
        self._start(self.env.row)

    def _start(self, row: int) -> None:
        self.env.reset(options={"image": row})
        self.ended, self.info, self.reward = False, {}, 0.0
        self._draw()

    def _random_paths(self, row: int) -> list[float]:
        """Rewards of random paths on an image."""
        worth = []
        for _ in range(PATHS):
            self.env.reset(options={"image": row})
            ended, total = False, 0.0
            while not ended:
                _, reward, ended, _, _ = self.env.step(int(self.rng.integers(self.grid[0] * self.grid[1])))
                total += float(reward)
            worth.append(total)
        return worth

    def look(self, location: int | None = None) -> None:
        """Look at a location, or where the cursor is; nothing when the caption is complete."""
        if self.ended:
            return
        self.cursor = self.cursor if location is None else location
        _, reward, self.ended, _, self.info = self.env.step(self.cursor)
        self.reward += float(reward)
        self._draw()

    def move(self, down: int, right: int) -> None:
        """Move the cursor; it stops at the edges."""
        row, column = divmod(self.cursor, self.grid[1])
        row = min(max(row + down, 0), self.grid[0] - 1)
        column = min(max(column + right, 0), self.grid[1] - 1)
        self.cursor = row * self.grid[1] + column

    def location_at(self, x: int, y: int) -> int | None:
        """The location under a pixel of the frame; None beside the picture."""
        if not (0 <= x < self.size and 0 <= y < self.size):
            return None
        return (y * self.grid[0] // self.size) * self.grid[1] + x * self.grid[1] // self.size

    def table(self) -> list[Row]:
        """Who earned what on this image, the best first; empty until the caption is complete."""
        if not self.ended:
            return []
        rows = [Row("you", self.reward, own=True), *(Row(name, earned) for name, earned in self.others.items())]
        return sorted(rows, key=lambda row: -row.reward)

    def report(self) -> str:
        """The finished caption and the table as a line."""
        earned = ", ".join(f"{row.name} {row.reward:.3f}" for row in self.table())
        return f"{self.info['image_id']}: {self.info['caption']} | {earned}"

    def frame(self) -> npt.NDArray[np.uint8]:
        """The picture with the cursor, the caption below and the panel beside them: uint8 (H, W, 3)."""
        picture = Image.fromarray(self._drawn)
        if not self.ended:
            draw_box(picture, tile_of(self.cursor, self.grid, self.size), PAPER)
        people = " ".join(self.env.dataset.references(self.env.row)[0])
        board = render_board(
            self.env.dataset.image_id(self.env.row),
            self.table(),
            f"People say: {people}" if self.ended else "Every glimpse is a word. What is worth a look?",
            KEYS,
            width=BOARD,
            height=picture.height,
        )
        return np.concatenate([np.asarray(picture), np.asarray(board)], axis=1)

    def _draw(self) -> None:
        self._drawn = cast(npt.NDArray[np.uint8], self.env.render())


def play(game: Game, window: Window) -> None:
    """Let a person play until the window is closed or q is pressed."""
    import pygame

    steps = {pygame.K_UP: (-1, 0), pygame.K_DOWN: (1, 0), pygame.K_LEFT: (0, -1), pygame.K_RIGHT: (0, 1)}
    frame = game.frame()
    while True:
        window.show(frame)
        events = pygame.event.get()
        for event in events:
            ended = game.ended
            if event.type == pygame.QUIT:
                return
            if event.type == pygame.MOUSEMOTION:
                game.cursor = _under(game, event.pos, game.cursor)
            elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1:
                if game.location_at(*event.pos) is not None:
                    game.look(game.location_at(*event.pos))
            elif event.type == pygame.KEYDOWN:
                if event.key in (pygame.K_q, pygame.K_ESCAPE):
                    return
                if event.key in steps:
                    game.move(*steps[event.key])
                elif event.key in (pygame.K_SPACE, pygame.K_RETURN):
                    game.look()
                elif event.key == pygame.K_r:
                    game.again()
                elif event.key == pygame.K_n:
                    game.next()
            if game.ended and not ended:
                print(game.report())
        if events:
            frame = game.frame()


def _under(game: Game, position: tuple[int, int], otherwise: int) -> int:
    location = game.location_at(*position)
    return otherwise if location is None else location


def main(arguments: Sequence[str] | None = None) -> None:
    """Read options, open a window and play."""
    parser = argparse.ArgumentParser(prog="python -m glimpse_env.play", description=__doc__)
    parser.add_argument("--env", default="Glimpse/Shapes-v0", choices=list(IDS), help="environment id")
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
    except (ValueError, OSError, Error) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _play(options: argparse.Namespace) -> None:
    window = Window(fps=30, caption=f"glimpse-env: {options.env}")
    made = gym.make(
        options.env,
        split=options.split,
        captioner=options.captioner,
        data_root=options.data_root,
        render_mode="rgb_array",
        disable_env_checker=True,
    )
    try:
        env = cast(GlimpseEnv, made.unwrapped)
        told = Standings({}, []) if options.captioner else load_standings(IDS[options.env], options.split)
        game = Game(env, told, options.seed)
        game.next(options.image)
        play(game, window)
    finally:
        window.close()
        made.close()
