"""How fast things are: caption training, BLEU, decoding, environments, over large tables, too; and what these hold.

Speeds are compared within one run on one machine; what is compared with is measured beside it.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from nltk.translate import bleu_score
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from agents.loading import find_agent
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import make_dataset
from glimpse_env.metrics.incremental_bleu import IncrementalBleu
from glimpse_env.metrics.ngram_table import ReferenceTable
from glimpse_env.models.captioner import load_captioner
from glimpse_env.registration import IDS
from glimpse_env.rollout.beam_search import BeamSearch
from glimpse_env.rollout.decode import BATCH, decode
from train.captioner import options as captioner_options
from train.captioner.batches import CaptionBatch
from train.captioner.options import settle
from train.captioner.trainer import Trainer
from train.common.formatting import write_json
from train.common.options import Compute, native_bfloat16, prepare
from train.evaluate import evaluation as evaluate
from train.throughput import environments as env_speed
from train.throughput import feature_tables as table_speed

# Operators of the profiler that are matrix products, or the packing that comes with them.
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution_overrideable", "mkldnn")

LENGTH = 12  # words of a scored caption, <end> included: the mean of Flickr8k's


@dataclass
class Options(Compute):
    """Measure speed."""

    what: tyro.conf.Positional[Literal["train", "bleu", "decode", "env", "workers", "memory", "table", "features"]] = (
        "train"
    )
    """What to measure: caption training; the score of every prefix of a batch of captions; beam search; environments'
    steps a second; those of several processes; the memory that many environments hold; environments over a feature
    table that is too large for it; or how fast images become features."""
    dataset: Literal["shapes", "shapes-large", "flickr8k", "flickr30k", "coco", "webdataset"] = "flickr8k"
    """On which dataset."""
    attention: Literal["soft", "none"] = "soft"
    """With soft attention or with none (train)."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the products."""
    batches: int = 30
    """Batches that are timed, after three that are not (train); rounds or blocks, of which the median counts (bleu,
    env)."""
    captions: int = 256
    """Captions scored at once (bleu)."""
    agent: Literal["soft", "hard"] = "soft"
    """Who looks (decode)."""
    beam_width: int = 3
    """Hypotheses an image (decode)."""
    singles: int = 100
    """Images that are also decoded one at a time (decode)."""
    num_envs: tuple[int, ...] = (1, 16, 256, 1024, 4096)
    """Environments at once (env); the last is that of workers, memory and table."""
    processes: int = 16
    """Environments of other ways to run the same episodes; 0 leaves them out (env)."""
    steps: int = 1_000_000
    """Steps of single episodes (memory)."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of processes (workers)."""
    images: int = 120_000
    """Rows of the table (table)."""
    folder: Path = Path("build/table")
    """Where the table is written, unless it is there; it stays (table)."""
    captioner: str = "flickr8k"
    """Whose sizes the table has (table), or whose CNN sees the images (features)."""
    json: Path | None = None
    """File for the figures."""


Figures = dict[str, Any]


def measure_training(options: Options) -> Figures:
    """Train on a few batches: first against the clock, then under the profiler."""
    shared = {name: getattr(options, name) for name in ("seed", "device", "threads", "data_root", "dataset")}
    settled = settle(
        captioner_options.Options(
            **shared, attention=options.attention, precision=options.precision, limit=options.limit, tile_steps=0
        )
    )
    trainer = Trainer(settled)
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
        "batches": len(timed),
        "tokens_per_second": sum(int(batch.lengths.sum()) for batch in timed) / seconds,
        "seconds_per_batch": seconds / len(timed),
        "share_outside_products": 1 - products / sum(spent.values()),
    }


def measure_bleu(options: Options) -> Figures:
    """Score every prefix of captions: batched and incremental, and with nltk one by one."""
    dataset = make_dataset(options.dataset, "val", options.data_root)
    vocabulary = Vocabulary.from_captions(words for row in range(len(dataset)) for words in dataset.references(row))
    rows = np.arange(min(options.captions, len(dataset)))
    references = [dataset.references(row) for row in rows.tolist()]
    said = [list(chain(*references[row - 1]))[:LENGTH] for row in rows.tolist()]  # what people say of another image
    captions = [words for words in said if len(words) == LENGTH]
    rows = rows[[len(words) == LENGTH for words in said]]
    table = ReferenceTable(
        lambda row: [vocabulary.encode(words) for words in dataset.references(row)], len(dataset), len(vocabulary)
    )
    scorer = IncrementalBleu(table, len(rows), smoothing=1, max_length=LENGTH, device=options.device)
    words = torch.tensor([vocabulary.encode(caption) for caption in captions], device=options.device)
    everyone = torch.ones(len(rows), dtype=torch.bool, device=options.device)
    began = time.perf_counter()
    scorer.begin(rows, rows)
    preparing = time.perf_counter() - began
    ours, rounds = torch.empty(0), []
    for _ in range(options.batches):
        began = time.perf_counter()
        scorer.begin(rows, rows)
        scores = []
        for step in range(LENGTH):
            scorer.append(words[:, step], everyone)
            scores.append(scorer.scores())
        ours = torch.stack(scores, 1).cpu()  # waits for a GPU
        rounds.append(time.perf_counter() - began)
    seconds = float(np.median(rounds))
    smoothing = bleu_score.SmoothingFunction().method1
    largest, theirs = 0.0, 0.0
    for number, caption in enumerate(tqdm(captions, desc="nltk", unit="caption", leave=False)):
        judged = references[rows[number]]
        began = time.perf_counter()
        expected = [
            bleu_score.sentence_bleu(judged, caption[:end], smoothing_function=smoothing)
            for end in range(1, LENGTH + 1)
        ]
        theirs += time.perf_counter() - began
        largest = max(largest, *(abs(one - float(own)) for one, own in zip(expected, ours[number], strict=True)))
    prefixes = words.numel()
    return {
        "dataset": options.dataset,
        "device": options.device,
        "captions": len(rows),
        "prefixes": prefixes,
        "microseconds_to_prepare_an_image": 1e6 * preparing / len(rows),
        "microseconds_per_prefix": 1e6 * seconds / prefixes,
        "microseconds_per_prefix_nltk": 1e6 * theirs / prefixes,
        "times_faster": theirs / seconds,
        "largest_difference": largest,
    }


def measure_decoding(options: Options) -> Figures:
    """Search captions for the images of val, many at a time and one at a time."""
    environment = next(name for name, dataset in IDS.items() if dataset == options.dataset)
    shared = {name: getattr(options, name) for name in ("seed", "device", "threads", "data_root")}
    env = evaluate.make_env(evaluate.Options(env=environment, split="val", agent=options.agent, **shared))
    agent = find_agent(options.agent, options.dataset).make(env, options.seed)
    rows = range(len(env.dataset))[: options.limit]
    beam = BeamSearch(options.beam_width)
    native = options.precision == "auto" and native_bfloat16(options.device)
    dtype = torch.bfloat16 if native or options.precision == "bfloat16" else torch.float32

    def speed(batch: int, images: range) -> float:
        """Images a second."""
        began = time.perf_counter()
        decode(
            env.captioner,
            env.features,
            agent,
            images,
            beam,
            max_caption_length=env.task.max_caption_length,
            batch=batch,
            device=options.device,
            dtype=dtype,
        )
        return len(images) / (time.perf_counter() - began)

    speed(BATCH, rows)  # once for the features to be read and the threads to wake
    together, apart = speed(BATCH, rows), speed(1, rows[: options.singles])
    return {
        "dataset": options.dataset,
        "agent": options.agent,
        "beam_width": options.beam_width,
        "precision": str(dtype).removeprefix("torch."),
        "images": len(rows),
        "images_per_second": together,
        "images_per_second_one_at_a_time": apart,
        "times_faster": together / apart,
    }


def _task(options: Options) -> dict[str, Any]:
    """Keyword arguments of the environments: hard attention over rows of val."""
    where = {"data_root": options.data_root, "device": options.device}
    return {"dataset": options.dataset, "split": "val", "observe": "index", **where}


def measure_environments(options: Options) -> Figures:
    """Steps a second of every way to run episodes; ratios that compare them."""
    task = _task(options)
    speeds = env_speed.measure_ways(task, sorted(options.num_envs), options.processes, options.batches)
    print(env_speed.speed_table(speeds))
    collecting = env_speed.collecting(task) if options.processes else {}
    return {
        "dataset": options.dataset,
        "device": options.device,
        **env_speed.ratios(speeds),
        **{f"collecting_{name}": value for name, value in collecting.items()},
        "ways": [{**one._asdict(), "steps_per_second": one.steps_per_second} for one in speeds],
    }


def measure_memory(options: Options) -> Figures:
    """What many environments hold, before and after many steps."""
    return {"dataset": options.dataset, **env_speed.measure_memory(_task(options), options.num_envs[-1], options.steps)}


def measure_workers(options: Options) -> Figures:
    """Steps a second of several processes, each with as many environments."""
    figures = env_speed.measure_workers(_task(options), options.num_envs[-1], options.workers, options.batches)
    return {"dataset": options.dataset, **figures}


def measure_table(options: Options) -> Figures:
    """Environments over a table on disk and over one in memory."""
    sizes = (options.folder, options.captioner, options.images, options.num_envs[-1], options.batches)
    return table_speed.measure_table(*sizes, options.device)


def measure_features(options: Options) -> Figures:
    """Images a second of a captioner's CNN, reading and writing included."""
    dataset = make_dataset(options.dataset, "val", options.data_root)
    encoder = load_captioner(options.captioner).encoder.to(options.device)
    rows = range(len(dataset))[: options.limit]
    return {"dataset": options.dataset, **table_speed.measure_features(dataset, encoder, rows)}


MEASURES = {
    "train": measure_training,
    "bleu": measure_bleu,
    "decode": measure_decoding,
    "env": measure_environments,
    "workers": measure_workers,
    "memory": measure_memory,
    "table": measure_table,
    "features": measure_features,
}


def main(options: Options) -> None:
    """Measure and report."""
    prepare(options)
    measured = MEASURES[options.what](options)
    machine: Figures = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    figures = machine | measured
    for name, value in figures.items():
        if isinstance(value, list):
            continue  # printed as a table
        print(f"{name:34}{value:.4g}" if isinstance(value, float) else f"{name:34}{value}")
    if options.json is not None:
        write_json(options.json, figures)
