"""Options of ``train.benchmark``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from glimpse_env.rollout.decode import Decoding
from train.evaluate.decoding_options import DecodingOptions


@dataclass
class Options(DecodingOptions):
    """Compare agents, and ways of decoding."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    split: str = "test"
    """train, val or test."""
    agents: list[str] = field(default_factory=list)
    """Agents to compare; by default all that are shipped for the environment and its controls. A quoted pattern of run
    directories, such as "runs/shapes-ppo-?", is one agent trained with several seeds: their mean is shown."""
    agent: Annotated[list[str], tyro.conf.arg(metavar="MODULE:CLASS")] = field(default_factory=list)
    """Agents to compare beside those, such as your own by import path."""
    against: str | None = None
    """One of the agents; by how much the others are above it is a column of its own (paired bootstrap)."""
    decoders: list[Decoding] = field(default_factory=list)
    """Ways of decoding to compare; by default the one of --decode."""
    seeds: int = 1
    """Trainings of each learned agent (--retrain), and plays of those that another seed lets look elsewhere: random,
    and your own if its class takes seed=."""
    retrain: bool = False
    """Train the learned agents here, --seeds times, and score those instead of the shipped ones: hours. Their runs lie
    beside the run directory; a study that was stopped goes on when it is started again. --limit cuts what is scored,
    not what is trained on."""
    length: float = 1.0
    """Share of its usual length that --retrain trains an agent for."""
    live: Annotated[int | None, tyro.conf.arg(metavar="STEPS")] = None
    """Steps of a short PPO run from nothing, to see it learn; 0 for none. By default 250,000 (a minute or two) on
    Shapes when no agents are named."""
    beside: Path | None = None
    """Run directory or results.json of an earlier benchmark of the same images, to stand in the same table."""
    coco: bool = False
    """Also METEOR and CIDEr-D; needs glimpse-env[coco] and Java."""
    run_dir: Path = Path("runs/benchmark")
    """Folder for report.html, results.json, results.csv, results.md and glimpses.png."""
