"""The main job: every agent on one environment, in one table, with learning curves and a page to see where they look.

Knows which agents play and in what order. How captions are scored, trained for and shown is for the modules beside it.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image
from tqdm import tqdm

from agents.loading import ASSETS, find_agent, shipped_agents
from glimpse_env.datasets import make_dataset
from glimpse_env.registration import IDS
from glimpse_env.rollout.beam_search import Captioned
from glimpse_env.rollout.decode import Decoding
from train.benchmark import learners as study
from train.benchmark.report import Report, write_report
from train.benchmark.report.learning_curves import kept_curves, read_curves
from train.benchmark.report.scenes import Player
from train.benchmark.results import Benchmark, Result, beside, ranked, summarise, write_results
from train.benchmark.seeds import seeds_of
from train.caption.gallery import picture, save_picture, stack
from train.common.options import check_writable, prepare
from train.evaluate import evaluation as evaluate
from train.evaluate.coco import check_coco
from train.evaluate.decoding_options import DecodingOptions

PICTURED = ("hard", "soft")  # agents whose glimpses are drawn
SCENES = 3  # images drawn for each
STUDY = ", in the study"  # behind the name of a shipped agent whose curves are those of docs/benchmark.md
LIVE = "ppo, live"  # the name of the short run in the table


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


Key = tuple[str, Decoding]  # an agent and how its words were found


class Comparison:
    """Agents that are scored one after another; what is known so far is always written.

    An agent that fails is named, its traceback is kept in errors.txt, and the others go on.

    Args:
        options: of the command.
        earlier: results of another benchmark, to stand in the same table.
    """

    def __init__(self, options: Options, earlier: dict[str, Result]) -> None:
        self.options = options
        self.decoders = options.decoders or [options.decode]
        self.made: dict[Key, list[evaluate.Evaluation]] = {}
        said = {one.name: getattr(options, one.name) for one in fields(DecodingOptions)} | {"decoders": self.decoders}
        self.benchmark = Benchmark(options.env, options.split, said, options.against, dict(earlier), {})
        options.run_dir.mkdir(parents=True, exist_ok=True)
        self.errors = options.run_dir / "errors.txt"
        for name in (self.errors.name, "report.html", "glimpses.png"):  # of an earlier benchmark in this folder
            (options.run_dir / name).unlink(missing_ok=True)

    def name(self, key: Key) -> str:
        """Of a row of the table."""
        return key[0] if len(self.decoders) == 1 else ", ".join(key)

    def play(self, agents: dict[str, list[str]]) -> None:
        """Score agents, by name what plays for each seed, and write the results after every one."""
        against = self.options.against
        order = sorted(agents, key=lambda name: name != against)  # who the others are compared with comes first
        keys = [(agent, decode) for agent in order for decode in self.decoders]
        with tqdm(total=sum(len(agents[agent]) for agent, _ in keys), desc="agents", unit="run") as bar:
            for key in keys:
                bar.set_postfix_str(self.name(key))
                before, seeds = bar.n, agents[key[0]]
                try:
                    runs = self._score(key, seeds, bar)
                except Exception as error:  # noqa: BLE001 (an agent of somebody's own may raise anything)
                    self.fail(self.name(key), error)
                    bar.update(before + len(seeds) - bar.n)
                    continue
                self.made[key] = runs
                self._gather(key, seeds)

    def _score(self, key: Key, seeds: list[str], bar: tqdm) -> list[evaluate.Evaluation]:
        runs = []
        for place, one in enumerate(seeds):
            again = place if len(set(seeds)) < len(seeds) else 0  # the same agent, playing once more
            runs.append(evaluate.evaluate(evaluation(self.options, one, key[1], again)))
            bar.update()
        return runs

    def fail(self, name: str, error: Exception) -> None:
        """Name a row of the table that there will not be, and why; keep the traceback."""
        told = self.benchmark.failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
        with self.errors.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n{''.join(traceback.format_exception(error))}\n")
        tqdm.write(f"{name} failed and is left out ({told}); its traceback is in {self.errors}", file=sys.stderr)
        write_results(self.options.run_dir, self.benchmark)

    def _gather(self, key: Key, seeds: list[str]) -> None:
        other = (self.options.against or "", key[1])
        others = self.made.get(other, []) if other != key else []
        result = summarise(self.made[key], others, seeds, self.options.seed, self.options.coco)
        self.benchmark.agents[self.name(key)] = result
        write_results(self.options.run_dir, self.benchmark)

    def captions(self) -> dict[str, list[Captioned]]:
        """By name what was said of every image with the first seed."""
        return {self.name(key): runs[0].captions for key, runs in self.made.items()}

    def report(self, agents: dict[str, list[str]], dataset: Any) -> Path:
        """Write the page of those that were scored, at least one; returns its path."""
        first = {self.name(key): runs[0] for key, runs in self.made.items()}
        order = [name for name, _ in ranked(self.benchmark.agents) if name in first]
        some = first[order[0]]
        played = {agent: agents[agent] for agent, _ in self.made}
        studied = kept_curves(ASSETS / f"{IDS[self.options.env]}-curves.csv")
        shipped = {f"{agent}{STUDY}": runs for agent, runs in studied.items() if played.get(agent) == [agent]}
        return write_report(
            self.options.run_dir / "report.html",
            Report(
                self.benchmark,
                shipped | read_curves(played),
                [Player(name, first[name].captions, first[name].grid) for name in order],
                some.references,
                some.names,
                dataset.image,
            ),
        )


def glimpses(options: Options, agents: dict[str, str], captions: dict[str, list[Captioned]]) -> Image.Image | None:
    """A few images with the glimpses of each pictured agent, or None when there is none.

    Args:
        options: of the command.
        agents: who played, by the name of the row.
        captions: what came of it, likewise.
    """
    drawn = [name for name, agent in agents.items() if agent in PICTURED]
    if not drawn:
        return None
    env: Any = evaluate.make_env(evaluation(options, agents[drawn[0]], options.decode))
    pictures = []
    for scene in range(min(SCENES, len(captions[drawn[0]]))):
        for name in drawn:
            made = captions[name][scene]
            grid = env.captioner.encoder.config.grid
            pictures.append(picture(env.dataset.image(made.row), made, grid, f"{name} attention"))
    return stack(pictures)


def evaluation(options: Options, agent: str, decode: Decoding, again: int = 0) -> evaluate.Options:
    """The options under which one agent is scored; ``again`` is added to the seed."""
    shared = {one.name: getattr(options, one.name) for one in fields(DecodingOptions)}
    shared |= {"decode": decode, "seed": options.seed + again}
    return evaluate.Options(env=options.env, split=options.split, agent=agent, **shared)


def plan(options: Options) -> dict[str, list[str]]:
    """Who plays: by name what plays for each seed. What is missing is refused here, before anybody plays.

    Agents that --retrain will train are not asked for.

    Raises:
        ValueError: an option has no such value, or an agent is none.
        FileNotFoundError: an agent's weights, or the runs of a pattern, are not there.
    """
    if options.env not in IDS:
        raise ValueError(f"unknown environment {options.env!r}; expected one of {', '.join(IDS)}")
    if options.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {options.seeds}")
    if not 0 < options.length <= 1:
        raise ValueError(f"length must be a share above 0 and at most 1, got {options.length}")
    if options.live is not None and options.live < 0:
        raise ValueError(f"live must be a number of steps, or 0 for no run, got {options.live}")
    dataset = IDS[options.env]
    names = [*options.agent, *(options.agents or shipped_agents(dataset))]
    if options.against is not None and options.against not in names:
        raise ValueError(f"--against {options.against!r} is none of the agents; add it to --agents {' '.join(names)}")
    agents: dict[str, list[str]] = {}
    for name in names:
        if trained_here(options, name):
            agents[name] = []
            continue
        agents[name] = seeds_of(name)
        found = [find_agent(one, dataset) for one in agents[name]]
        if found[0].seeded or options.stochastic:
            agents[name] *= options.seeds if len(agents[name]) == 1 else 1
    return agents


def trained_here(options: Options, name: str) -> bool:
    """Whether --retrain trains an agent."""
    return options.retrain and study.learner(name, IDS[options.env]) is not None


def live_steps(options: Options) -> int:
    """Steps of the short PPO run; 0 for none."""
    if options.live is not None:
        return options.live
    return study.LIVE_STEPS if IDS[options.env] == "shapes" and not options.agents and not options.retrain else 0


def learn(comparison: Comparison, agents: dict[str, list[str]], name: str, train: Callable[[], list[str]]) -> None:
    """Train an agent, and score it like the others; what was scored before stands, whatever a training raises."""
    try:
        agents[name] = train()
    except Exception as error:  # noqa: BLE001 (as `play` does)
        comparison.fail(name, error)
        return
    comparison.play({name: agents[name]})


def retrain(comparison: Comparison, agents: dict[str, list[str]], name: str) -> None:
    """Train a learned agent with every seed, and score it; its runs lie beside the run directory."""
    options = comparison.options
    seeds = range(options.seed, options.seed + options.seeds)
    folder, dataset = options.run_dir.parent, IDS[options.env]
    learn(
        comparison,
        agents,
        name,
        lambda: study.retrain(name, options.env, dataset, seeds, folder, options, options.length),
    )


def main(options: Options) -> None:
    """Score every agent, print the table, let PPO learn, write the page, and say what to try next.

    Raises:
        SystemExit: an agent failed; with its name and error, when all others are done.
        ValueError: there is no such environment or agent, or the agent to compare with is not among the agents.
        FileNotFoundError: an agent's weights, or the runs of a pattern, are not there.
        OSError: the run directory cannot be written to.
    """
    prepare(options)
    if options.coco:
        check_coco()
    began = time.monotonic()
    agents = plan(options)
    dataset_name = IDS[options.env]
    check_writable(options.run_dir, "--run-dir", folder=True)
    if options.retrain:
        check_writable(options.run_dir.parent, "--run-dir", folder=True)
    dataset = make_dataset(dataset_name, options.split, options.data_root)
    images = len(range(len(dataset))[: options.limit])
    decoders = options.decoders or [options.decode]
    earlier = {} if options.beside is None else beside(options.beside, options.env, options.split, images, decoders)
    comparison = Comparison(options, earlier)
    trained = [name for name in agents if trained_here(options, name)]
    try:
        if options.against in trained:  # who the others are compared with comes first
            retrain(comparison, agents, options.against)
        comparison.play({name: seeds for name, seeds in agents.items() if name not in trained})
        for name in trained:
            if name != options.against:
                retrain(comparison, agents, name)
        steps = live_steps(options)
        if steps:
            print(f"\n{comparison.benchmark.title}\n\n{write_results(options.run_dir, comparison.benchmark)}")
            if comparison.made:
                comparison.report(agents, dataset)
            folder = options.run_dir / "ppo-live"
            learn(comparison, agents, LIVE, lambda: [study.live(options.env, folder, options, steps)])
    except KeyboardInterrupt:
        if comparison.made:
            print(f"Stopped; what was scored so far: {comparison.report(agents, dataset)}")
        raise
    if not comparison.made:
        raise SystemExit(f"No agent could be scored. {comparison.benchmark.failures}; tracebacks: {comparison.errors}")
    print(f"\n{comparison.benchmark.title}\n\n{write_results(options.run_dir, comparison.benchmark)}\n")
    sheet = glimpses(options, {comparison.name(key): key[0] for key in comparison.made}, comparison.captions())
    if sheet is not None:
        save_picture(sheet, options.run_dir / "glimpses.png")
        print(f"Where they looked: {options.run_dir / 'glimpses.png'}")
    print(f"Word by word, in a browser: {comparison.report(agents, dataset)}")
    print(f"Done in {time.monotonic() - began:.0f} s. Caption your own photographs with:")
    print("  .venv/bin/python -m train.caption PHOTO.jpg --captioner flickr8k --out glimpses.png")
    if comparison.benchmark.failed:
        raise SystemExit(f"{comparison.benchmark.failures}; tracebacks: {comparison.errors}")
