"""A moving picture of an agent at work, as on the front page.

Frames are those of ``render_mode="rgb_array"``. A picture of your own has no references, so no reward is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import tyro
from PIL import Image

from agents.loading import find_agent, shipped_attention
from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.datasets.photos.files import read_photograph
from glimpse_env.metrics.rewards import BleuReward
from glimpse_env.models.captioner import load_captioner
from glimpse_env.registration import IDS
from glimpse_env.rendering.frames import render_frame
from glimpse_env.rollout.beam_search import Captioned
from train.caption.command import caption
from train.common.cli import run_command
from train.common.options import check_writable, prepare
from train.evaluate import evaluation as evaluate
from train.evaluate.decoding_options import DecodingOptions

Frames = list[npt.NDArray[np.uint8]]
COMMON, RARE = 144, 96  # colours of the whole GIF: those of most pixels, and those far from others, as print and trail
WORD, END = 400, 3000  # milliseconds a frame, and the last


@dataclass
class Options(DecodingOptions):
    """Draw an agent at work."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    split: str = "test"
    """train, val or test."""
    agent: str | None = None
    """As train.evaluate takes it, by default reinforce; with --photo hard or soft, by default hard."""
    images: tuple[int, ...] = (0,)
    """Rows of the split, shown one after the other."""
    photo: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A picture of your own instead."""
    size: int = 448
    """Width in pixels."""
    out: Path = Path("runs/glimpses.gif")
    """The GIF."""


def frames(
    image: Image.Image, made: Captioned, grid: tuple[int, int], title: str, reward: float | None, size: int
) -> Frames:
    """The picture alone, then a frame a glimpse; the reward is on the last.

    Args:
        image: what is captioned.
        made: its caption and glimpses.
        grid: rows and columns of locations.
        title: written below.
        reward: of the caption, if it has one.
        size: width in pixels.
    """
    hard = bool((np.count_nonzero(made.looked, axis=1) == 1).all())
    places = made.looked.argmax(1).tolist()
    drawn = [render_frame(image, grid, weights=None, title=title, size=size)]
    for step, weights in enumerate(made.looked):
        drawn.append(
            render_frame(
                image,
                grid,
                weights=weights,
                trail=places[:step] if hard else [],
                words=made.words[: step + 1],
                reward=reward if step == len(made.looked) - 1 else None,
                title=title,
                size=size,
            )
        )
    return drawn


def save_gif(episodes: Sequence[Frames], path: Path) -> None:
    """Write episodes as one GIF that goes round; with one palette for all frames what stands still costs nothing."""
    pictures = [Image.fromarray(frame) for episode in episodes for frame in episode]
    shown = Image.fromarray(np.concatenate([np.asarray(pictures[i]) for i in range(0, len(pictures), 4)]))
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        [
            *_colours(shown.quantize(COMMON, method=Image.Quantize.MEDIANCUT)),
            *_colours(shown.quantize(RARE, method=Image.Quantize.MAXCOVERAGE)),
        ]
    )
    first, *rest = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures]
    times = [time for episode in episodes for time in [*[WORD] * (len(episode) - 1), END]]
    with atomic_path(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=rest, duration=times, loop=0, optimize=True)


def _colours(picture: Image.Image) -> list[int]:
    """The palette of a picture, channel after channel."""
    return picture.getpalette() or []


def of_photograph(options: Options, path: Path) -> Frames:
    """An agent at work on a picture of one's own."""
    dataset, kind = IDS[options.env], options.agent or "hard"
    if kind not in ("hard", "soft"):
        raise ValueError(f"agent {kind!r} plays in environments only; with --photo choose hard or soft")
    captioner = load_captioner(find_agent(kind, dataset).captioner or dataset).to(options.device)
    photo = read_photograph(path)
    attention = shipped_attention(kind, dataset)
    (made,) = caption(options, "soft" if kind == "soft" else "hard", attention, captioner, [photo])
    return frames(photo, made, captioner.encoder.config.grid, kind, None, options.size)


def of_images(options: Options) -> list[Frames]:
    """An agent at work on images of an environment."""
    name = options.agent or "reinforce"
    asked = evaluate.Options(
        env=options.env, split=options.split, agent=name, data_root=options.data_root, device=options.device
    )
    env = evaluate.make_env(asked)
    agent = find_agent(name, IDS[options.env]).make(env, options.seed)
    worth, grid = BleuReward(), env.captioner.encoder.config.grid
    drawn = []
    for row in options.images:
        longest = env.task.max_caption_length
        (made,) = options.make_captions(env.captioner, env.features, agent, range(row, row + 1), longest, None)
        reward = worth(env.dataset.references(row), made.words, made.ended)
        drawn.append(frames(env.dataset.image(row), made, grid, name, reward, options.size))
        print(f"{env.dataset.image_id(row)}: {' '.join(made.words)} ({reward:.3f})")
    return drawn


def main(options: Options) -> None:
    """Caption, draw and write.

    Raises:
        ValueError: an option has no such value.
        OSError: the GIF cannot be written.
    """
    prepare(options)
    if options.env not in IDS:
        raise ValueError(f"unknown environment {options.env!r}; expected one of {', '.join(IDS)}")
    if options.out.suffix.lower() != ".gif":
        raise ValueError(f"--out {str(options.out)!r} is no GIF; let its name end in .gif")
    check_writable(options.out, "--out")
    episodes = of_images(options) if options.photo is None else [of_photograph(options, options.photo)]
    save_gif(episodes, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_command(main, Options)
