"""Score every agent on one environment: a table, learning curves, and a page with the glimpses of each word."""

from __future__ import annotations

import time
from collections.abc import Callable

from agents.loading import find_agent, shipped_agents
from glimpse_env.datasets import make_dataset, world_of
from train.benchmark import learners
from train.benchmark.benchmark_run import BenchmarkRun
from train.benchmark.options import Options
from train.benchmark.results import earlier_results
from train.benchmark.seeds import seeds_of
from train.caption.gallery import save_picture
from train.common.options import check_writable, prepare
from train.evaluate.coco import check_coco

LIVE_NAME = "ppo, live"  # the short PPO run in the table


def select_agents(options: Options) -> dict[str, list[str]]:
    """The agents to score: by name, what is evaluated for each seed; an empty list of those that --retrain trains.

    Everything that is missing is found here, before the first agent is scored.

    Raises:
        ValueError: an option has no such value, or an agent is none.
        FileNotFoundError: an agent's weights, or the runs of a pattern, are not there.
    """
    if options.seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {options.seeds}")
    if not 0 < options.length <= 1:
        raise ValueError(f"length must be a share above 0 and at most 1, got {options.length}")
    if options.live is not None and options.live < 0:
        raise ValueError(f"live must be a number of steps, or 0 for no run, got {options.live}")
    dataset = world_of(options.env).name
    names = [*options.agent, *(options.agents or shipped_agents(dataset))]
    if options.against is not None and options.against not in names:
        raise ValueError(f"--against {options.against!r} is none of the agents; add it to --agents {' '.join(names)}")
    agents: dict[str, list[str]] = {}
    for name in names:
        if options.retrain and learners.find_learner(name, dataset) is not None:
            agents[name] = []
            continue
        agents[name] = seeds_of(name)
        specs = [find_agent(agent, dataset) for agent in agents[name]]
        if len(specs) == 1 and (specs[0].seeded or options.stochastic):
            agents[name] *= options.seeds
    return agents


def _live_steps(options: Options) -> int:
    default = 0 if options.agents or options.retrain else world_of(options.env).live_steps
    return default if options.live is None else options.live


def _train_and_score(run: BenchmarkRun, name: str, train: Callable[[], list[str]]) -> None:
    """Train an agent and score its runs; after an exception of the training, earlier results are unaffected."""
    try:
        runs = train()
    except Exception as error:  # noqa: BLE001 (as in `BenchmarkRun.score`)
        run.fail(name, error)
    else:
        run.score({name: runs})


def _retrain(run: BenchmarkRun, name: str) -> None:
    """Train a learned agent with every seed, and score it; its runs are beside the run directory."""
    options, folder = run.options, run.options.run_dir.parent
    seeds = range(options.seed, options.seed + options.seeds)
    arguments = (name, options.env, seeds, folder, options, options.length)
    _train_and_score(run, name, lambda: learners.retrain(*arguments))


def _score_all(run: BenchmarkRun, agents: dict[str, list[str]]) -> None:
    options = run.options
    untrained = sorted((name for name, seeds in agents.items() if not seeds), key=lambda name: name != options.against)
    if options.against in untrained:  # first, because the others are compared with it
        _retrain(run, untrained.pop(0))
    run.score({name: seeds for name, seeds in agents.items() if seeds})
    for name in untrained:
        _retrain(run, name)
    steps = _live_steps(options)
    if steps:
        print(f"\n{run.benchmark.title}\n\n{run.write()}")
        if run.runs:
            run.write_report()
        folder = options.run_dir / "ppo-live"
        _train_and_score(run, LIVE_NAME, lambda: [learners.train_live(options.env, folder, options, steps)])


def _print_results(run: BenchmarkRun) -> None:
    print(f"\n{run.benchmark.title}\n\n{run.write()}\n")
    sheet = run.draw_glimpses()
    if sheet is not None:
        path = run.options.run_dir / "glimpses.png"
        save_picture(sheet, path)
        print(f"Where they looked: {path}")
    print(f"Word by word, in a browser: {run.write_report()}")


def main(options: Options) -> None:
    """Score every agent, print the table, train PPO for a short time, and write the page.

    Raises:
        SystemExit: an agent failed; with its name and error, after all others are scored.
        ValueError: there is no such environment or agent, or the agent to compare with is not among the agents.
        FileNotFoundError: an agent's weights, or the runs of a pattern, are not there.
        OSError: the run directory cannot be written to.
    """
    prepare(options)
    if options.coco:
        check_coco()
    start = time.monotonic()
    agents = select_agents(options)
    check_writable(options.run_dir, "--run-dir", folder=True)
    if options.retrain:
        check_writable(options.run_dir.parent, "--run-dir", folder=True)
    dataset = make_dataset(world_of(options.env).name, options.split, options.data_root)
    images, decoders = len(range(len(dataset))[: options.limit]), options.decoders or [options.decode]
    path = options.beside
    earlier = {} if path is None else earlier_results(path, options.env, options.split, images, decoders)
    run = BenchmarkRun(options, dataset, earlier)
    try:
        _score_all(run, agents)
    except KeyboardInterrupt:
        if run.runs:
            print(f"Stopped; what was scored so far: {run.write_report()}")
        raise
    if not run.runs:
        raise SystemExit(f"No agent could be scored. {run.benchmark.failures}; tracebacks: {run.errors}")
    _print_results(run)
    print(f"Done in {time.monotonic() - start:.0f} s. Caption your own photographs with:")
    print("  .venv/bin/python -m train.caption PHOTO.jpg --captioner flickr8k --out glimpses.png")
    if run.benchmark.failed:
        raise SystemExit(f"{run.benchmark.failures}; tracebacks: {run.errors}")
