"""Score an agent: captions for every image of a split, their BLEU, how it looked, and if the words depend on that."""

from __future__ import annotations

import json
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
from agents.loading import find_agent
from agents.scripted import RandomAgent
from glimpse_env.core.atomic_files import atomic_path
from glimpse_env.core.checks import check_count
from glimpse_env.registration import IDS
from glimpse_env.rollout.beam_search import Captioned
from glimpse_env.rollout.decode import decode
from train.common.formatting import write_json
from train.common.options import check_writable, prepare
from train.evaluate.attention_metrics import Looking, soft_reference, watch
from train.evaluate.coco import check_coco, coco_scores
from train.evaluate.decoding_options import DecodingOptions
from train.evaluate.scoring import Scores, compare, score, sentence_scores


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
        data_root=None if options.data_root is None else str(options.data_root),
        device=options.device,
    )
    return env.unwrapped


class Evaluation(NamedTuple):
    """Captions and what they are scored against.

    Attributes:
        scores: of the captions.
        captions: of every image.
        references: of every image.
        names: of every image.
        looking: how the agent looked.
        grid: rows and columns of the locations it looked at.
    """

    scores: Scores
    captions: list[Captioned]
    references: list[list[list[str]]]
    names: list[str]
    looking: Looking
    grid: tuple[int, int]


def evaluate(options: Options) -> Evaluation:
    """Caption every image of the split (or the first ``limit``), score the captions and measure how the agent looked.

    Raises:
        ValueError: an option has no such value.
        FileNotFoundError: the data, the captioner or the agent is not there.
    """
    env = make_env(options)
    agent = find_agent(options.agent, IDS[options.env]).make(env, options.seed)
    rows = range(len(env.dataset))[: options.limit]
    longest = env.task.max_caption_length
    captions = options.make_captions(env.captioner, env.features, agent, rows, longest, options.agent)
    references = [env.dataset.references(row) for row in rows]
    looking = watch(env, agent, captions, soft_reference(env), getattr(torch, options.precision))
    names = [env.dataset.image_id(row) for row in rows]
    grid = env.captioner.encoder.config.grid
    return Evaluation(score(captions, references), captions, references, names, looking, grid)


def measure_spread(options: Options) -> Spread:
    """Play K random paths on every image (or the first ``limit``)."""
    captioner = options.captioner or find_agent(options.agent, IDS[options.env]).captioner
    env = make_env(Options(**{**vars(options), "agent": "random", "captioner": captioner}))
    rows = range(len(env.dataset))[: options.limit]
    references = [env.dataset.references(row) for row in rows]
    worth, longest = [], env.task.max_caption_length
    for path in tqdm(range(options.spread), desc="random paths", unit="path", leave=False):
        agent = RandomAgent(env.features.shape[1], options.seed + path)
        made = decode(env.captioner, env.features, agent, rows, max_caption_length=longest, device=options.device)
        worth.append(sentence_scores(made, references))
    table = np.array(worth)  # (K, N)
    return Spread(float(table.mean()), float(table.max(0).mean()), options.spread)


def write_captions(path: Path, made: Evaluation) -> None:
    """Write one JSON object a line: image, caption, whether it ended, its log-probability and its sentence BLEU-4."""
    each = sentence_scores(made.captions, made.references)
    with atomic_path(path) as partial, partial.open("w") as file:
        for name, caption, worth in zip(made.names, made.captions, each, strict=True):
            record = {
                "image_id": name,
                "caption": " ".join(caption.words),
                "ended": caption.ended,
                "log_probability": caption.log_probability,
                "bleu4": worth,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions by image, from a file that ``write_captions`` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not such an object.
    """
    said: dict[str, list[str]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); write the file again with --captions") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            said[record["image_id"]] = record["caption"].split()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: not a caption as --captions writes it ({error!r}); write the file again"
            ) from error
    return said


def captions_of(names: list[str], said: dict[str, list[str]], path: Path) -> list[list[str]]:
    """The captions of the images ``names``.

    Raises:
        ValueError: an image has none.
    """
    missing = [name for name in names if name not in said]
    if missing:
        raise ValueError(
            f"{path} has no caption of {missing[0]!r} ({len(missing)} of {len(names)} images are missing); "
            "compare runs on the same split and limit"
        )
    return [said[name] for name in names]


def main(options: Options) -> None:
    """Score and report.

    Raises:
        ValueError: an option has no such value.
        FileNotFoundError: the data, the captioner or the agent is not there.
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
    others = {} if options.against is None else read_captions(options.against)  # before the captions are made
    began = time.monotonic()
    made = evaluate(options)
    scores = made.scores
    figures: dict[str, Any] = {
        "agent": options.agent,
        "env": options.env,
        "split": options.split,
        "decode": options.decode,
        "decoding": asdict(options.decoding),
        "stochastic": options.stochastic,
        "precision": options.precision,
        "captioner": options.captioner,
        "seed": options.seed,
        **scores._asdict(),
        "looking": made.looking._asdict(),
        "seconds": round(time.monotonic() - began, 2),
    }
    print(f"{options.agent} on {options.env} {options.split}, {options.decode}, {scores.num_images} images")
    print("BLEU-1..4  " + "  ".join(f"{value:.4f}" for value in scores.bleu))
    print(f"sentence BLEU-4  {scores.sentence_bleu:.4f}   distinct  {scores.distinct:.3f}")
    print(f"length ratio  {scores.length_ratio:.3f}   bad endings  {scores.bad_endings:.3f}")
    print(f"looking  {made.looking}")
    words = [caption.words for caption in made.captions]
    if options.coco:
        figures |= coco_scores(words, made.references)
        print("  ".join(f"{name} {figures[name]:.4f}" for name in ("meteor", "rouge_l", "cider_d")))
    if options.spread:
        spread = measure_spread(options)
        figures["spread"] = {**spread._asdict(), "spread": spread.best - spread.random}
        print(
            f"spread  {spread.best - spread.random:.4f}   (best of {spread.paths} random paths {spread.best:.4f}, "
            f"mean of random {spread.random:.4f}; sentence BLEU-4)"
        )
    if options.against is not None:
        theirs = captions_of(made.names, others, options.against)
        found = compare(words, theirs, made.references, np.random.default_rng(options.seed))
        figures["against"] = {"captions": str(options.against), **found._asdict()}
        print(
            f"against {options.against}  BLEU-4 {found.difference:+.4f}, 95 % interval {found.low:+.4f} to "
            f"{found.high:+.4f}; better in {found.wins:.1%} of {found.resamples} resamples"
        )
    if options.captions is not None:
        write_captions(options.captions, made)
    if options.json is not None:
        write_json(options.json, figures)
