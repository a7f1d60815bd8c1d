"""Measure the speed of caption training, BLEU, decoding, environments and feature tables, and their memory.

Speeds that are compared are measured in one run on one machine.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import tyro
from nltk.translate import bleu_score
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import find_world, make_dataset
from glimpse_env.metrics.incremental_bleu import IncrementalBleu
from glimpse_env.metrics.references import ReferenceTable
from glimpse_env.models.captioner import load_captioner
from glimpse_env.rollout.beam_search import BeamSearch
from glimpse_env.rollout.decode import BATCH, decode
from train.captioner import options as captioner_options
from train.captioner.batches import CaptionBatch
from train.captioner.trainer import Trainer
from train.common.formatting import write_json
from train.common.options import CommonOptions, DatasetName, prepare, product_dtype
from train.evaluate.evaluation import Options as EvaluationOptions
from train.evaluate.evaluation import make_env_and_agent
from train.throughput import environments, feature_tables
from train.throughput.memory import measure_memory

# Operators of the profiler that are matrix products, or the packing that comes with them.
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution_overrideable", "mkldnn")

LENGTH = 12  # words of a scored caption, <end> included: the mean of Flickr8k's


@dataclass
class Options(CommonOptions):
    """Measure speed."""

    what: tyro.conf.Positional[Literal["train", "bleu", "decode", "env", "workers", "memory", "table", "features"]] = (
        "train"
    )
    """What to measure: caption training; the score of every prefix of a batch of captions; beam search; environments'
    steps a second; those of several processes; the memory that many environments hold; environments over a feature
    table that is too large for it; or how fast images become features."""
    dataset: DatasetName = "flickr8k"
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
    shared = {name: getattr(options, name) for name in ("seed", "device", "threads", "data_root", "dataset", "limit")}
    training_options = captioner_options.Options(
        **shared, attention=options.attention, precision=options.precision, tile_steps=0
    )
    trainer = Trainer(captioner_options.resolve_defaults(training_options))
    trainer.open()
    batches: list[CaptionBatch] = []
    while len(batches) < options.batches + 3:
        batches += list(trainer.batches.epoch(np.random.default_rng([options.seed, len(batches)])))
    for batch in batches[:3]:
        trainer.update(batch)
    timed = batches[3 : options.batches + 3]
    start = time.perf_counter()
    for batch in tqdm(timed, desc="training", unit="batch", leave=False):
        trainer.update(batch)
    seconds = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for batch in timed[:10]:
            trainer.update(batch)
    durations = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    products = sum(duration for name, duration in durations.items() if name.startswith(PRODUCTS))
    return {
        "attention": options.attention,
        "precision": str(product_dtype(options.precision, options.device)).removeprefix("torch."),
        "batches": len(timed),
        "tokens_per_second": sum(int(batch.lengths.sum()) for batch in timed) / seconds,
        "seconds_per_batch": seconds / len(timed),
        "share_outside_products": 1 - products / sum(durations.values()),
    }


def measure_bleu(options: Options) -> Figures:
    """Score every prefix of captions: batched and incremental, and one by one with nltk."""
    dataset = make_dataset(options.dataset, "val", options.data_root)
    vocabulary = Vocabulary.from_captions(words for row in range(len(dataset)) for words in dataset.references(row))
    references = [dataset.references(row) for row in range(min(options.captions, len(dataset)))]
    others = [list(chain(*references[row - 1]))[:LENGTH] for row in range(len(references))]  # of another image
    rows = np.array([row for row, caption in enumerate(others) if len(caption) == LENGTH], np.int64)
    captions = [others[row] for row in rows]
    table = ReferenceTable(
        lambda row: [vocabulary.encode(words) for words in dataset.references(row)], len(dataset), len(vocabulary)
    )
    scorer = IncrementalBleu(table, len(rows), smoothing=1, max_length=LENGTH, device=options.device)
    tokens = torch.tensor([vocabulary.encode(caption) for caption in captions], device=options.device)
    start = time.perf_counter()
    scorer.begin(rows, rows)
    preparing = time.perf_counter() - start
    scores, seconds = _score_incrementally(scorer, rows, tokens, options.batches)
    nltk_scores, nltk_seconds = _score_with_nltk(captions, [references[row] for row in rows])
    prefixes = tokens.numel()
    return {
        "device": options.device,
        "captions": len(rows),
        "prefixes": prefixes,
        "microseconds_to_prepare_an_image": 1e6 * preparing / len(rows),
        "microseconds_per_prefix": 1e6 * seconds / prefixes,
        "microseconds_per_prefix_nltk": 1e6 * nltk_seconds / prefixes,
        "times_faster": nltk_seconds / seconds,
        "largest_difference": float(np.abs(nltk_scores - scores).max()),
    }


def _score_incrementally(
    scorer: IncrementalBleu, rows: npt.NDArray[np.int64], tokens: torch.Tensor, rounds: int
) -> tuple[npt.NDArray[np.float64], float]:
    """BLEU of every prefix, (B, T), and the median of the seconds that a round takes."""
    everyone = torch.ones(len(rows), dtype=torch.bool, device=tokens.device)
    bleu, seconds = torch.empty(0), []
    for _ in range(rounds):
        start = time.perf_counter()
        scorer.begin(rows, rows)
        scores = []
        for step in range(tokens.shape[1]):
            scorer.append(tokens[:, step], everyone)
            scores.append(scorer.scores())
        bleu = torch.stack(scores, 1).cpu()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return bleu.numpy(), float(np.median(seconds))


def _score_with_nltk(
    captions: list[list[str]], references: list[list[list[str]]]
) -> tuple[npt.NDArray[np.float64], float]:
    """BLEU of every prefix, (B, T), and the seconds that nltk takes."""
    smoothing = bleu_score.SmoothingFunction().method1
    start = time.perf_counter()
    scores = [
        [
            bleu_score.sentence_bleu(refs, caption[:end], smoothing_function=smoothing)
            for end in range(1, len(caption) + 1)
        ]
        for caption, refs in zip(tqdm(captions, desc="nltk", unit="caption", leave=False), references, strict=True)
    ]
    return np.array(scores), time.perf_counter() - start


def measure_decoding(options: Options) -> Figures:
    """Beam search for captions of val, many images at a time and one at a time."""
    env_id = find_world(options.dataset).env_id
    shared = {name: getattr(options, name) for name in ("seed", "device", "threads", "data_root")}
    env, agent = make_env_and_agent(EvaluationOptions(env=env_id, split="val", agent=options.agent, **shared))
    rows = range(len(env.dataset))[: options.limit]
    beam = BeamSearch(options.beam_width)
    dtype = product_dtype(options.precision, options.device)

    def images_per_second(batch: int, images: range) -> float:
        start = time.perf_counter()
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
        return len(images) / (time.perf_counter() - start)

    images_per_second(BATCH, rows)  # reads the features and starts the threads
    batched, single = images_per_second(BATCH, rows), images_per_second(1, rows[: options.singles])
    return {
        "agent": options.agent,
        "beam_width": options.beam_width,
        "precision": str(dtype).removeprefix("torch."),
        "images": len(rows),
        "images_per_second": batched,
        "images_per_second_one_at_a_time": single,
        "times_faster": batched / single,
    }


def _task(options: Options) -> dict[str, Any]:
    """Keyword arguments of the environments: hard attention on images of val."""
    machine = {"data_root": options.data_root, "device": options.device}
    return {"dataset": options.dataset, "split": "val", "observe": "index", **machine}


def measure_environments(options: Options) -> Figures:
    """Steps a second of every way to run episodes, and ratios that compare them."""
    task = _task(options)
    speeds = environments.measure_ways(task, sorted(options.num_envs), options.processes, options.batches)
    print(environments.speed_table(speeds))
    collection = environments.measure_collection(task) if options.processes else {}
    return {
        "device": options.device,
        **environments.speed_ratios(speeds),
        **{f"collecting_{name}": value for name, value in collection.items()},
        "ways": [{**speed._asdict(), "steps_per_second": speed.steps_per_second} for speed in speeds],
    }


def measure(options: Options) -> Figures:
    """What ``options.what`` names."""
    num_envs, rounds = options.num_envs[-1], options.batches
    if options.what == "table":
        sizes = (options.folder, options.captioner, options.images, num_envs, rounds)
        return feature_tables.measure_table(*sizes, options.device)
    if options.what == "workers":
        figures = environments.measure_workers(_task(options), num_envs, options.workers, rounds)
    elif options.what == "memory":
        figures = measure_memory(_task(options), num_envs, options.steps)
    elif options.what == "features":
        dataset = make_dataset(options.dataset, "val", options.data_root)
        encoder = load_captioner(options.captioner).encoder.to(options.device)
        figures = feature_tables.measure_features(dataset, encoder, range(len(dataset))[: options.limit])
    else:
        measures = {"train": measure_training, "bleu": measure_bleu, "decode": measure_decoding}
        figures = measures.get(options.what, measure_environments)(options)
    return {"dataset": options.dataset, **figures}


def main(options: Options) -> None:
    """Measure, and print the figures."""
    prepare(options)
    measured = measure(options)  # before the number of threads is read
    figures: Figures = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **measured,
    }
    for name, value in figures.items():
        if not isinstance(value, list):  # lists are printed as tables
            print(f"{name:34}{value:.4g}" if isinstance(value, float) else f"{name:34}{value}")
    if options.json is not None:
        write_json(options.json, figures)
