"""Score an agent on a split: BLEU of its captions, where it attends, and how much the words depend on the glimpses."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from tqdm import tqdm

import glimpse_env  # noqa: F401 (registers the ids)
from agents.base import Agent
from agents.loading import find_agent
from agents.scripted import RandomAgent
from glimpse_env.core.checks import check_count
from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.datasets import world_of
from glimpse_env.rollout.beam_search import Captioned
from glimpse_env.rollout.decode import decode
from train.common.formatting import write_json
from train.common.options import check_writable, prepare
from train.evaluate.attention_metrics import AttentionMetrics, measure_attention, soft_reference
from train.evaluate.caption_files import captions_of, read_captions, write_captions
from train.evaluate.coco import check_coco, coco_scores
from train.evaluate.decoding_options import DecodingOptions
from train.evaluate.scoring import Scores, compare, score, sentence_scores, world_metrics


@dataclass
class Options(DecodingOptions):
    """Score an agent."""

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    split: str = "val"
    """train, val or test."""
    agent: str = "soft"
    """soft, hard, no-attention, random, center, raster, uniform, shuffled, oracle; reinforce, ppo; a run directory or
    a file; soft:FILE, hard:FILE or shuffled:FILE; or module:Class."""
    captioner: str | None = None
    """Shipped captioner or file; by default the agent's or the dataset's own."""
    spread: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """Also measure how much the captioner listens: the best of K random paths an image against a random one."""
    coco: bool = False
    """Also METEOR, ROUGE-L and CIDEr-D; needs glimpse-env[coco] and Java."""
    json: Path | None = None
    """File for the figures."""
    captions: Path | None = None
    """File for the captions and their sentence BLEU, one JSON object a line."""
    against: Path | None = None
    """Captions of the same images, from --captions of another run: is the difference more than luck?"""


class Spread(NamedTuple):
    """How much the words depend on the glimpses, in mean sentence BLEU-4 (method 1) over images."""

    random: float  # of one random path of glimpses, mean over K
    best: float  # of the best of K random paths of each image
    paths: int  # K


def make_env_and_agent(options: Options) -> tuple[Any, Agent]:
    """The unwrapped environment and the agent that is scored in it."""
    spec = find_agent(options.agent, world_of(options.env).name)
    env: Any = gym.make(
        options.env,
        split=options.split,
        captioner=options.captioner or spec.captioner,
        attention=spec.attention,
        observe="index",
        data_root=None if options.data_root is None else str(options.data_root),
        device=options.device,
    ).unwrapped
    return env, spec.make(env, options.seed)


class Evaluation(NamedTuple):
    """Captions, references and names of every image, and the captions' scores."""

    scores: Scores
    captions: list[Captioned]
    references: list[list[list[str]]]
    names: list[str]
    metrics: dict[str, float]  # the world's metrics of the captions, other than BLEU, by name
    attention_metrics: AttentionMetrics  # of the captions' glimpses
    grid: LocationGrid  # where the locations lie


def evaluate(options: Options) -> Evaluation:
    """Caption every image of the split (or the first ``limit``) and score the captions and their glimpses.

    Raises:
        ValueError: an option has no such value.
        FileNotFoundError: the data, the captioner or the agent is not there.
    """
    return evaluate_agent(options, *make_env_and_agent(options))


def evaluate_agent(options: Options, env: Any, agent: Agent) -> Evaluation:
    """As ``evaluate``, with the environment and the agent of ``make_env_and_agent``."""
    rows = range(len(env.dataset))[: options.limit]
    longest = env.task.max_caption_length
    captions = options.make_captions(env.captioner, env.features, agent, rows, longest, options.agent)
    references = [env.dataset.references(row) for row in rows]
    reference_agent: Any = agent if options.agent == "soft" else soft_reference(env)
    attention_metrics = measure_attention(env, agent, captions, reference_agent, getattr(torch, options.precision))
    names = [env.dataset.image_id(row) for row in rows]
    metrics = world_metrics(env.dataset.name, captions, references)
    scores, grid = score(captions, references), env.captioner.encoder.grid
    return Evaluation(scores, captions, references, names, metrics, attention_metrics, grid)


def measure_spread(options: Options, env: Any) -> Spread:
    """Caption every image of an environment (or the first ``limit``) along K random paths of glimpses."""
    rows = range(len(env.dataset))[: options.limit]
    references = [env.dataset.references(row) for row in rows]
    bleu, longest = [], env.task.max_caption_length
    for path in tqdm(range(options.spread), desc="random paths", unit="path", leave=False):
        agent = RandomAgent(env.features.shape[1], options.seed + path)
        captions = decode(env.captioner, env.features, agent, rows, max_caption_length=longest, device=options.device)
        bleu.append(sentence_scores(captions, references))
    table = np.array(bleu)  # (K, N)
    return Spread(float(table.mean()), float(table.max(0).mean()), options.spread)


def main(options: Options) -> None:
    """Score and report.

    Raises:
        ValueError, FileNotFoundError: as ``evaluate``.
        ImportError: what --coco needs is not there.
        OSError: --json or --captions cannot be written.
    """
    prepare(options)
    check_count("spread", options.spread, 0)
    for path, option in ((options.json, "--json"), (options.captions, "--captions")):
        if path is not None:
            check_writable(path, option)
    if options.coco:
        check_coco()
    other_captions = {} if options.against is None else read_captions(options.against)  # before the long work
    start = time.monotonic()
    env, agent = make_env_and_agent(options)
    evaluation = evaluate_agent(options, env, agent)
    figures = _report_scores(options, evaluation) | {"seconds": round(time.monotonic() - start, 2)}
    if options.coco:
        scores = coco_scores([caption.words for caption in evaluation.captions], evaluation.references)
        print("  ".join(f"{name} {scores[name]:.4f}" for name in ("meteor", "rouge_l", "cider_d")))
        figures |= scores
    if options.spread:
        spread = measure_spread(options, env)
        print(
            f"spread  {spread.best - spread.random:.4f}   (best of {spread.paths} random paths {spread.best:.4f}, "
            f"mean of random {spread.random:.4f}; sentence BLEU-4)"
        )
        figures["spread"] = {**spread._asdict(), "spread": spread.best - spread.random}
    if options.against is not None:
        theirs = captions_of(evaluation.names, other_captions, options.against)
        figures["against"] = _report_comparison(options, evaluation, theirs)
    if options.captions is not None:
        write_captions(options.captions, evaluation.names, evaluation.captions, evaluation.references)
    if options.json is not None:
        write_json(options.json, figures)


def _report_scores(options: Options, evaluation: Evaluation) -> dict[str, Any]:
    scores = evaluation.scores
    print(f"{options.agent} on {options.env} {options.split}, {options.decode}, {scores.num_images} images")
    print("BLEU-1..4  " + "  ".join(f"{value:.4f}" for value in scores.bleu))
    print(f"sentence BLEU-4  {scores.sentence_bleu:.4f}   distinct  {scores.distinct:.3f}")
    print(f"length ratio  {scores.length_ratio:.3f}   bad endings  {scores.bad_endings:.3f}")
    if evaluation.metrics:
        print("   ".join(f"{name}  {value:.4f}" for name, value in evaluation.metrics.items()))
    print(f"looking  {evaluation.attention_metrics}")
    names = ("agent", "env", "split", "decode", "decoding", "stochastic", "precision", "captioner", "seed")
    settings = {name: getattr(options, name) for name in names} | {"decoding": asdict(options.decoding)}
    return {**settings, **scores._asdict(), **evaluation.metrics, "looking": evaluation.attention_metrics._asdict()}


def _report_comparison(options: Options, evaluation: Evaluation, theirs: list[list[str]]) -> dict[str, Any]:
    ours = [caption.words for caption in evaluation.captions]
    result = compare(ours, theirs, evaluation.references, np.random.default_rng(options.seed))
    print(
        f"against {options.against}  BLEU-4 {result.difference:+.4f}, 95 % interval {result.low:+.4f} to "
        f"{result.high:+.4f}; better in {result.wins:.1%} of {result.resamples} resamples"
    )
    return {"captions": str(options.against), **result._asdict()}
