"""How fast training is: tokens a second, and what of the time is not matrix products."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from train import captioner
from train.batches import CaptionBatch
from train.common import Compute, prepare, write_json

# Operators of the profiler that are matrix products, or the packing that comes with them.
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution_overrideable", "mkldnn")


@dataclass
class Options(Compute):
    """Measure speed."""

    what: tyro.conf.Positional[Literal["train"]] = "train"
    """What to measure: caption training."""
    dataset: Literal["shapes", "flickr8k", "flickr30k", "coco"] = "flickr8k"
    """On which dataset."""
    attention: Literal["soft", "none"] = "soft"
    """With soft attention or with none."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the products."""
    batches: int = 30
    """Batches that are timed, after three that are not."""
    json: Path | None = None
    """File for the figures."""


def measure(options: Options) -> dict[str, float | int | str]:
    """Train on a few batches: first against the clock, then under the profiler."""
    shared = {name: getattr(options, name) for name in ("seed", "device", "threads", "data_root", "dataset")}
    settled = captioner.settle(
        captioner.Options(
            **shared, attention=options.attention, precision=options.precision, limit=options.limit, tile_steps=0
        )
    )
    trainer = captioner.Trainer(settled)
    trainer.open()
    batches: list[CaptionBatch] = []
    while len(batches) < options.batches + 3:
        batches += list(trainer.batches.epoch(np.random.default_rng([options.seed, len(batches)])))
    for batch in batches[:3]:
        trainer.update(batch)
    timed = batches[3 : options.batches + 3]
    began = time.perf_counter()
    for batch in tqdm(timed, desc="training", unit="batch", leave=False):
        trainer.update(batch)
    seconds = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for batch in timed[:10]:
            trainer.update(batch)
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    products = sum(microseconds for name, microseconds in spent.items() if name.startswith(PRODUCTS))
    return {
        "dataset": options.dataset,
        "attention": options.attention,
        "precision": "bfloat16" if trainer.bfloat16 else "float32",
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "batches": len(timed),
        "tokens_per_second": sum(int(batch.lengths.sum()) for batch in timed) / seconds,
        "seconds_per_batch": seconds / len(timed),
        "share_outside_products": 1 - products / sum(spent.values()),
    }


def main(options: Options) -> None:
    """Measure and report."""
    prepare(options)
    figures = measure(options)
    for name, value in figures.items():
        print(f"{name:24}{value:.4g}" if isinstance(value, float) else f"{name:24}{value}")
    if options.json is not None:
        write_json(options.json, figures)


if __name__ == "__main__":
    main(tyro.cli(Options))
