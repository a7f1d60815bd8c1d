"""Draw an agent's episodes as an animated GIF, with the frames of ``render_mode="rgb_array"``.

A photograph of your own has no references, so its frames have no reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import tyro
from PIL import Image

from agents.base import AttentionKind
from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.datasets import world_of
from glimpse_env.datasets.photos.files import read_photograph
from glimpse_env.rendering.frames import render_frame
from glimpse_env.rollout.beam_search import Captioned
from train.caption.runner import caption, load_models
from train.common.cli import run_command
from train.common.options import check_writable, prepare
from train.evaluate.decoding_options import DecodingOptions
from train.evaluate.evaluation import Options as EvaluationOptions
from train.evaluate.evaluation import make_env_and_agent

Frames = list[npt.NDArray[np.uint8]]
COMMON_COLOURS, RARE_COLOURS = 144, 96  # of the GIF: those of most pixels, and those far from others, as in text
FRAME_TIME, LAST_FRAME_TIME = 400, 3000  # milliseconds


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


def draw_frames(
    image: Image.Image, caption: Captioned, grid: LocationGrid, title: str, reward: float | None, size: int
) -> Frames:
    """A frame of the image alone, then one for each glimpse, ``size`` pixels wide; the last one has the reward."""
    draw = partial(render_frame, image, grid, title=title, size=size)
    hard = (np.count_nonzero(caption.glimpses, axis=1) == 1).all()
    trail = caption.glimpses.argmax(1).tolist() if hard else []
    frames = [draw(weights=None)]
    for step, weights in enumerate(caption.glimpses, 1):
        final = reward if step == len(caption.glimpses) else None
        words = caption.words[: step - sum(silent < step for silent in caption.silent_steps)]
        frames.append(draw(weights=weights, trail=trail[: step - 1], words=words, reward=final))
    return frames


def save_gif(episodes: Sequence[Frames], path: Path) -> None:
    """Write episodes as one GIF that repeats; all frames have one palette, so that unchanged pixels take no space."""
    pictures = [Image.fromarray(frame) for episode in episodes for frame in episode]
    sample = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures[::4]]))
    common = sample.quantize(COMMON_COLOURS, method=Image.Quantize.MEDIANCUT)
    rare = sample.quantize(RARE_COLOURS, method=Image.Quantize.MAXCOVERAGE)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(common.getpalette() or []), *(rare.getpalette() or [])])
    first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    times = [time for frames in episodes for time in [*[FRAME_TIME] * (len(frames) - 1), LAST_FRAME_TIME]]
    with atomic_path(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=times, loop=0, optimize=True)


def _photograph_episode(options: Options, path: Path) -> Frames:
    """The frames of soft or hard attention on a photograph."""
    dataset = world_of(options.env).name
    kind: AttentionKind = "soft" if options.agent == "soft" else "hard"
    if (options.agent or kind) != kind:
        raise ValueError(f"agent {options.agent!r} plays in environments only; with --photo choose hard or soft")
    attention, captioner = load_models(kind, dataset, None, options.device)
    photo = read_photograph(path)
    (captioned,) = caption(options, kind, attention, captioner, [photo])
    return draw_frames(photo, captioned, captioner.encoder.grid, kind, None, options.size)


def _environment_episodes(options: Options) -> list[Frames]:
    """The frames of an agent on images of an environment."""
    name = options.agent or "reinforce"
    shared = {name: getattr(options, name) for name in ("env", "split", "seed", "device", "data_root")}
    env, agent = make_env_and_agent(EvaluationOptions(agent=name, **shared))
    longest = env.task.max_caption_length
    episodes = []
    for row in options.images:
        rows = range(row, row + 1)
        (captioned,) = options.make_captions(env.captioner, env.features, agent, rows, longest, None)
        image = env.dataset.image(row)
        reward = env.task.reward(env.dataset.references(row), captioned.words, captioned.ended)
        episodes.append(draw_frames(image, captioned, env.captioner.encoder.grid, name, reward, options.size))
        print(f"{env.dataset.image_id(row)}: {' '.join(captioned.words)} ({reward:.3f})")
    return episodes


def main(options: Options) -> None:
    """Caption the images, draw the frames and write the GIF."""
    prepare(options)
    if options.out.suffix.lower() != ".gif":
        raise ValueError(f"--out {str(options.out)!r} is no GIF; let its name end in .gif")
    check_writable(options.out, "--out")
    episodes = [_photograph_episode(options, options.photo)] if options.photo else _environment_episodes(options)
    save_gif(episodes, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run_command(main, Options)
