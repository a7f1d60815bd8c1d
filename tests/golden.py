"""Golden trajectories: episodes of every shipped captioner, recorded when it was shipped.

    python -m tests.golden                 # rewrite tests/golden: for a new -vN id, or a new captioner
    python -m tests.golden shapes          # of one captioner

A file has, for each kind of attention and decoding, the first episodes in which no two words had nearly the same
probability, so that other processors and other releases of torch generate the same words. An episode has its seed,
image, glimpses, words, rewards to six decimals, and BLEU-1 to BLEU-4.

Captioners of Shapes are recorded in ``Glimpse/Shapes-v0`` and ``Glimpse/ShapesLarge-v0``. Those of Flickr8k are
recorded on artificial annotations and references: the photographs must not be committed, and a CNN rounds differently
on other processors. ``scenes`` has the mean grey values of scenes of Shapes on a 7 × 7 grid.

``photographs/flickr8k.json`` has episodes of ``Glimpse/Flickr8k-v0``, with larger margins between the words, and
digests of the photographs' ids and captions in their order; it is rewritten where $GLIMPSE_DATA is set.
``defaults/ids.json`` has the arguments and T of every id, and ``defaults/pixels.json`` a digest of the input that each
captioner's CNN gets for one artificial photograph.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from glimpse_env.datasets import CaptionDataset, make_dataset
from glimpse_env.features.table import FeatureTable
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import BleuReward
from glimpse_env.models.captioner import Captioner, load_captioner, save_captioner, shipped_captioners
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import WordSampling
from tests.conftest import IDS, SHAPES_CONFIGS, build_captioner
from tests.photographs import write_photographs
from tests.reference_env import ReferenceEnv

FOLDER = Path(__file__).parent / "golden"
PHOTOGRAPHS = FOLDER / "photographs" / "flickr8k.json"
DEFAULTS, PIXELS = FOLDER / "defaults" / "ids.json", FOLDER / "defaults" / "pixels.json"
EPISODES = 8  # of each way
VARIANTS = {
    "hard": {"attention": "hard", "shaped": False, "decoding": "greedy"},
    "hard, words drawn": {"attention": "hard", "shaped": True, "decoding": "sample"},
    "soft": {"attention": "soft", "shaped": True, "decoding": "greedy"},
}
# How far every word was at least from being another, in logits or, where words are drawn, in probability. Annotations
# of Shapes come out of a CNN and are rounded to half precision; made-up ones are the same everywhere.
CLEAR = {
    "shapes": {"greedy": 0.05, "sample": 2e-3},
    "made up": {"greedy": 0.01, "sample": 2e-4},
    "photographs": {"greedy": 0.05, "sample": 2e-3},
}
SHARES = (0.75, 0.25)  # of the two locations that soft attention looks at


class MadeUp:
    """Images that nobody sees: annotations like those of photographs, mostly zero, and references of common words."""

    name, split, procedural = "flickr8k", "val", True
    lines = (
        "a man in a red shirt is standing on the street",
        "two dogs are running through the grass",
        "a girl in a blue dress is playing in the water",
        "a black and white dog is jumping over a ball",
        "people are sitting at a table in front of a building",
        "a boy rides a bike on a dirt road",
    )

    def __len__(self) -> int:
        return 64

    def references(self, row: int) -> list[list[str]]:
        return [self.lines[(row + step) % len(self.lines)].split() for step in range(3)]

    def image_id(self, row: int) -> str:
        return f"made-up-{row}"

    @staticmethod
    @functools.cache
    def annotations(rows: int, locations: int, features: int) -> FeatureTable:
        """(N, L, D): every location mixes two of a few themes, and has something of its own."""
        rng = np.random.Generator(np.random.PCG64(8))

        def sparse(share: float, *shape: int) -> Any:
            """Products alone, which no processor rounds otherwise."""
            return 6 * rng.random(shape) * rng.random(shape) * (rng.random(shape) < share)

        themes, table = sparse(0.06, 24, features), np.empty((rows, locations, features), np.float16)
        for row in range(rows):
            first, second = themes[rng.integers(len(themes), size=(2, locations))]
            table[row] = np.minimum(first + second + sparse(0.04, locations, features), 6)
        return FeatureTable(table)


class World:
    """One captioner and what it is played on: the id it belongs to, or the made-up images.

    Args:
        name: the captioner's.
        photographs: whether one of Flickr8k looks at the photographs, and not at what is made up.
    """

    def __init__(self, name: str, photographs: bool = False) -> None:
        self.captioner: Captioner = load_captioner(name)
        self.id = next(id for id, dataset in IDS.items() if dataset == self.captioner.dataset)
        self.kind = (
            "shapes" if self.captioner.dataset in SHAPES_CONFIGS else "photographs" if photographs else "made up"
        )
        self.name = name
        self._envs: dict[str, Any] = {}
        if self.kind == "made up":
            encoder = self.captioner.encoder
            self.dataset: Any = MadeUp()
            self.features = self.dataset.annotations(len(self.dataset), encoder.num_locations, encoder.feature_dim)
            self.longest = 20
        else:
            env = self.env("hard")
            self.dataset, self.features, self.longest = env.dataset, env.features, env.task.max_caption_length

    def env(self, variant: str) -> Any:
        if variant not in self._envs:
            named = None if self.name == self.captioner.dataset else self.name  # the id's own is its default
            env = gym.make(self.id, split="val", captioner=named, observe="index", **VARIANTS[variant])
            self._envs[variant] = env.unwrapped
        return self._envs[variant]

    def reference(self, variant: str) -> ReferenceEnv:
        return ReferenceEnv(
            self.captioner, self.dataset, self.features, observe="index", longest=self.longest, **VARIANTS[variant]
        )

    def action(self, variant: str, locations: Any) -> Any:
        if VARIANTS[variant]["attention"] == "hard":
            return locations
        weights = np.zeros(self.features.shape[1], np.float32)
        np.add.at(weights, locations, np.float32(SHARES))
        return weights

    def draw_glimpse(self, variant: str, rng: np.random.Generator) -> Any:
        """Somewhere new."""
        hard = VARIANTS[variant]["attention"] == "hard"
        return rng.integers(self.features.shape[1], size=None if hard else len(SHARES)).tolist()

    def play(self, variant: str, seed: int, glimpses: list[Any]) -> dict[str, Any]:
        """An episode of the environment, as the file holds it."""
        if self.kind == "made up":
            return self._play_made_up(variant, seed, glimpses)
        env = self.env(variant)
        observation, info = env.reset(seed=seed)
        words, rewards, ended, row = [], [], False, int(observation["image"][0])
        for locations in glimpses:
            if ended:
                break
            observation, reward, ended, _, info = env.step(self.action(variant, locations))
            words.append(env.captioner.vocabulary.words[int(observation["word"][0])])
            rewards.append(float(reward))
        return self._record(seed, row, glimpses, words, rewards, info["bleu"] if ended else [])

    def _play_made_up(self, variant: str, seed: int, glimpses: list[Any]) -> dict[str, Any]:
        options = VARIANTS[variant]
        references = SplitReferences(self.dataset, self.captioner.vocabulary)
        dynamics = CaptionDynamics(
            self.captioner,
            self.features,
            references,
            BleuReward(),
            num_episodes=1,
            attention=options["attention"],
            shaped=options["shaped"],
            sampling=WordSampling(options["decoding"]),
        )
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        row = int(rng.random() * len(self.dataset))
        dynamics.begin([0], [row])
        words, rewards = [], []
        for locations in glimpses:
            if dynamics.episodes.ended[0]:
                break
            draws = [rng.random()] if dynamics.sampling.random else None
            step = dynamics.step(np.asarray([self.action(variant, locations)]), draws)
            words.append(self.captioner.vocabulary.words[int(step.words[0])])
            rewards.append(float(step.rewards[0]))
        return self._record(seed, row, glimpses, words, rewards, dynamics.episodes.metrics[0])

    @staticmethod
    def _record(
        seed: int, row: int, glimpses: Any, words: list[str], rewards: list[float], bleu: Any
    ) -> dict[str, Any]:
        paid = [round(reward, 6) + 0.0 for reward in rewards]  # no −0.0
        scores = [round(float(score), 6) for score in bleu]
        return {
            "seed": seed,
            "image": row,
            "looks": glimpses,
            "words": " ".join(words),
            "rewards": paid,
            "bleu": scores,
        }


def find(world: World, variant: str, count: int) -> list[dict[str, Any]]:
    """The first episodes in which no word was a close choice; every other one looks where Shapes shows something.

    Raises:
        RuntimeError: there are too few.
    """
    reference, least, episodes = world.reference(variant), CLEAR[world.kind][VARIANTS[variant]["decoding"]], []
    for seed in range(4_000):
        rng = np.random.default_rng(seed)
        reference.margin = np.inf
        reference.reset(seed)
        glimpses: list[Any] = []
        tiles = [thing.tile for thing in world.dataset.objects(reference.row)] if world.kind == "shapes" else []
        while not reference.ended and reference.margin > least:
            locations = world.draw_glimpse(variant, rng)
            if tiles and seed % 2:  # as one who reads the scene, roughly: an object for some words, then the next
                tile = tiles[len(glimpses) * len(tiles) // 14 % len(tiles)]
                locations = tile if VARIANTS[variant]["attention"] == "hard" else [tile, locations[1]]
            glimpses.append(locations)
            reference.step(world.action(variant, locations))
        if reference.margin > least:
            episodes.append(world.play(variant, seed, glimpses))
            if episodes[-1]["words"].split() != [world.captioner.vocabulary.words[word] for word in reference.words]:
                raise RuntimeError(f"{world.name}, {variant}: the environment does not say what the reference says")
        if len(episodes) == count:
            return episodes
    raise RuntimeError(f"{world.name}, {variant}: only {len(episodes)} of {count} episodes without close choices")


def grey_means(dataset: str, row: int) -> list[float]:
    """Grey means of 7 × 7 parts of a scene of val, row by row, in [0, 255]."""
    grey = np.asarray(make_dataset(dataset, "val").image(row), np.float64).mean(2)
    side = len(grey) // 7
    return [round(float(mean), 2) for mean in grey.reshape(7, side, 7, side).mean((1, 3)).ravel()]


def write_scenes() -> None:
    """Write what the first scenes of every world look like."""
    for dataset in SHAPES_CONFIGS:
        path = FOLDER / "scenes" / f"{dataset}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(grey_means(dataset, row)) for row in range(4)) + "\n]\n")


def write_variants(path: Path, world: World, more: dict[str, str]) -> None:
    """Write what is said and earned in a world, in every way, an episode a line, after ``more``."""
    variants = {variant: find(world, variant, EPISODES) for variant in VARIANTS}
    path.parent.mkdir(exist_ok=True)
    entries = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in more.items()]
    entries += [
        f"  {json.dumps(variant)}: [\n" + ",\n".join(f"    {json.dumps(episode)}" for episode in episodes) + "\n  ]"
        for variant, episodes in variants.items()
    ]
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n")


def write(name: str) -> None:
    """Write a captioner's file, and that of what it says of photographs, if it is Flickr8k's own and they are here."""
    write_variants(FOLDER / f"{name}.json", World(name), {})
    if name == "flickr8k" and os.environ.get("GLIMPSE_DATA"):
        world = World(name, photographs=True)
        write_variants(PHOTOGRAPHS, world, data_digests(world.dataset))


def data_digests(dataset: CaptionDataset) -> dict[str, str]:
    """SHA-256 of the names of a split's images, row by row, and of the words of their references."""
    rows = range(len(dataset))
    names = "\n".join(dataset.image_id(row) for row in rows)
    words = json.dumps([dataset.references(row) for row in rows])
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in (("ids", names), ("references", words))}


def registered(data_root: Path, captioner: str) -> dict[str, Any]:
    """What every id is registered with, and its T.

    Args:
        data_root: holds some photographs of every dataset of photographs.
        captioner: of Shapes; only those datasets' captions need be in its words.
    """
    defaults = {}
    for id in IDS:
        env = gym.make(id, split="val", captioner=captioner, data_root=str(data_root)).unwrapped
        defaults[id] = {"kwargs": dict(gym.spec(id).kwargs), "max_caption_length": env.task.max_caption_length}
    return defaults


def pixels_digest(name: str) -> str:
    """SHA-256 of what a captioner's CNN is given of one made-up photograph, wider than it is high."""
    row, column, channel = np.indices((150, 400, 3))
    photo = Image.fromarray(((row * row // 7 + column * 5 + row * column // 11 + channel * 80) % 256).astype(np.uint8))
    pixels = load_captioner(name).encoder.pixels([photo])
    return hashlib.sha256(f"{tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes()).hexdigest()


def write_defaults() -> None:
    """Write what every id is registered with, and what the captioners' CNNs are given."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_photographs(Path(folder))
        save_captioner(build_captioner(), root / "captioner.safetensors")
        defaults = registered(root, str(root / "captioner.safetensors"))
    digests = {name: pixels_digest(name) for name in shipped_captioners()}
    for path, content in ((DEFAULTS, defaults), (PIXELS, digests)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_scenes()
    write_defaults()
    for shipped in tqdm(sys.argv[1:] or shipped_captioners(), unit="captioner"):
        write(shipped)
