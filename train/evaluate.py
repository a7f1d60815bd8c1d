"""Score an agent: captions for every image of a split, their BLEU, and how much the words depend on the glimpses."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

import glimpse_env  # noqa: F401 (registers the ids)
from agents.loading import find_agent
from agents.scripted import RandomAgent
from glimpse_env.registration import IDS
from glimpse_env.sampling import Method
from train.common import Compute, prepare, write_json
from train.scoring import Captioned, Scores, play, score, sentence_scores

BATCH = 250  # episodes at once


@dataclass
class Options(Compute):
    """Score an agent."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    split: str = "val"
    """train, val or test."""
    agent: str = "soft"
    """soft, hard, no-attention, random, center, raster, uniform, oracle; soft:FILE or hard:FILE; or module:Class."""
    captioner: str | None = None
    """Shipped captioner or file; by default the agent's or the dataset's own."""
    decode: Method = "greedy"
    """How the decoder chooses words."""
    temperature: float = 1.0
    """Divides the logits before a draw."""
    top_k: int = 10
    """Words that top-k keeps."""
    top_p: float = 0.9
    """Mass that top-p keeps."""
    stochastic: bool = False
    """Let the agent draw its glimpses instead of taking the likeliest."""
    spread: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """Also measure how much the captioner listens: the best of K random paths an image against a random one."""
    json: Path | None = None
    """File for the figures."""


class Spread(NamedTuple):
    """How much the words depend on where one looks, in mean sentence BLEU-4 (method 1) over images.

    Attributes:
        random: of one random path, mean over K.
        best: of the best of K random paths of each image.
        paths: K.
    """

    random: float
    best: float
    paths: int


def make_env(options: Options) -> Any:
    """The unwrapped environment an agent is scored in."""
    if options.env not in IDS:
        raise ValueError(f"unknown environment {options.env!r}; expected one of {', '.join(IDS)}")
    spec = find_agent(options.agent, IDS[options.env])
    env = gym.make(
        options.env,
        split=options.split,
        captioner=options.captioner or spec.captioner,
        attention=spec.attention,
        observe="index",
        decoding=options.decode,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        data_root=None if options.data_root is None else str(options.data_root),
        device=options.device,
    )
    return env.unwrapped


def evaluate(options: Options) -> tuple[Scores, list[Captioned]]:
    """Caption every image of the split (or the first ``limit``) and score the captions.

    Raises:
        ValueError: an option has no such value.
        FileNotFoundError: the data, the captioner or the agent is not there.
    """
    env = make_env(options)
    agent = find_agent(options.agent, IDS[options.env]).make(env, options.seed)
    rows = range(len(env.dataset))[: options.limit]
    captions = play(
        env.task.dynamics(min(BATCH, len(rows))),
        agent,
        rows,
        deterministic=not options.stochastic,
        rng=np.random.default_rng(options.seed),
        progress=options.agent,
    )
    return score(captions, [env.dataset.references(row) for row in rows]), captions


def measure_spread(options: Options) -> Spread:
    """Play K random paths on every image (or the first ``limit``)."""
    captioner = options.captioner or find_agent(options.agent, IDS[options.env]).captioner
    env = make_env(Options(**{**vars(options), "agent": "random", "decode": "greedy", "captioner": captioner}))
    rows = range(len(env.dataset))[: options.limit]
    references = [env.dataset.references(row) for row in rows]
    dynamics = env.task.dynamics(min(BATCH, len(rows)))
    worth = []
    for path in tqdm(range(options.spread), desc="random paths", unit="path", leave=False):
        agent = RandomAgent(env.features.shape[1], options.seed + path)
        worth.append(sentence_scores(play(dynamics, agent, rows), references))
    table = np.array(worth)  # (K, N)
    return Spread(float(table.mean()), float(table.max(0).mean()), options.spread)


def main(options: Options) -> None:
    """Score and report."""
    prepare(options)
    began = time.monotonic()
    scores, _ = evaluate(options)
    figures: dict[str, Any] = {
        "agent": options.agent,
        "env": options.env,
        "split": options.split,
        "decode": options.decode,
        "captioner": options.captioner,
        "seed": options.seed,
        **scores._asdict(),
        "seconds": round(time.monotonic() - began, 2),
    }
    print(f"{options.agent} on {options.env} {options.split}, {options.decode}, {scores.num_images} images")
    print("BLEU-1..4  " + "  ".join(f"{value:.4f}" for value in scores.bleu))
    print(f"sentence BLEU-4  {scores.sentence_bleu:.4f}")
    print(f"length ratio  {scores.length_ratio:.3f}   bad endings  {scores.bad_endings:.3f}")
    if options.spread:
        spread = measure_spread(options)
        figures["spread"] = {**spread._asdict(), "spread": spread.best - spread.random}
        print(
            f"spread  {spread.best - spread.random:.4f}   (best of {spread.paths} random paths {spread.best:.4f}, "
            f"mean of random {spread.random:.4f}; sentence BLEU-4)"
        )
    if options.json is not None:
        write_json(options.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Options))
