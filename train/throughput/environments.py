"""How fast environments step: one, many side by side, and many at once, each beside the products it cannot avoid.

Knows how to time; which options there are is said in throughput.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from tqdm import tqdm

from agents.sb3 import GlimpseVecEnv
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.models.decoder import DecoderState
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.registration import IDS
from train.common.formatting import markdown_table

SECONDS = 0.05  # that a block takes, about


class Speed(NamedTuple):
    """What one way to run episodes takes; microseconds are of a step of all environments.

    Attributes:
        way: its name.
        num_envs: N.
        step: a step, resets included.
        floor: the bare products of the decoder for N episodes.
        decoder: the decoder's whole step for N episodes.
        bleu: the scores of captions that have ended; NaN where it cannot be told apart.
        copy: ``get_state`` and ``set_state`` once; NaN where there are none.
    """

    way: str
    num_envs: int
    step: float
    floor: float
    decoder: float
    bleu: float
    copy: float

    @property
    def steps_per_second(self) -> float:
        """Steps of single episodes a second."""
        return 1e6 * self.num_envs / self.step


def warm(env: GlimpseEnv | GlimpseVectorEnv) -> None:
    """Let every image of the split have been seen: its features encoded, its references prepared."""
    _ = env.features[:]
    env.task.stock.references.table(4, end=True).prepare(np.arange(len(env.dataset)))


def single(task: dict[str, Any]) -> GlimpseEnv:
    """A single environment that knows all its images."""
    torch.set_num_threads(1)  # in a process of its own; the caller sets its own number again
    env = GlimpseEnv(**task)
    warm(env)
    return env


class Ticking:
    """Steps an environment with random locations drawn beforehand.

    Args:
        env: any kind: single, Gymnasium's vectors or Stable-Baselines3's.
        num_envs: N; 0 for a single environment.
        locations: L.
    """

    def __init__(self, env: Any, num_envs: int, locations: int) -> None:
        self.env = env
        shape = (512, num_envs) if num_envs else (512,)
        self._actions = np.random.default_rng(0).integers(locations, size=shape)
        self._alone, self._next = not num_envs, 0
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        if isinstance(self.env, (gym.Env, VectorEnv)):
            self.env.reset(seed=0)
        else:
            self.env.seed(0)
            self.env.reset()

    def step(self) -> None:
        """One step of every environment."""
        self._next = (self._next + 1) % len(self._actions)
        action = self._actions[self._next]
        if not self._alone:
            self.env.step(action)
        elif self.env.step(int(action))[2]:
            self.env.reset()


def in_turns(ways: list[Callable[[], Any]], blocks: int) -> list[float]:
    """Microseconds of a call of each, the median over blocks; they take turns, so that all see the same machine."""
    counts = []
    for way in ways:
        way()
        began = time.perf_counter()
        way()
        counts.append(max(int(SECONDS / (time.perf_counter() - began)), 2))
    taken = np.empty((blocks, len(ways)))
    for block in range(blocks):
        for place, (way, count) in enumerate(zip(ways, counts, strict=True)):
            began = time.perf_counter()
            for _ in range(count):
                way()
            taken[block, place] = (time.perf_counter() - began) / count
    return [1e6 * float(one) for one in np.median(taken, 0)]


def decoder_step(decoder: FrozenDecoder, batch: int) -> Callable[[], Any]:
    """The decoder's whole step for B contexts, context in and logits out."""
    config, device = decoder.config, decoder.device
    context = torch.randn(batch, config.feature_dim, device=device).half()
    state = DecoderState(*(torch.randn(batch, config.hidden_dim, device=device) for _ in range(2)))
    token = torch.randint(4, config.vocab_size, (batch,), device=device)

    def step() -> None:
        with torch.inference_mode():
            decoder.say(decoder.project(context), token, state)

    return step


def copying(env: Any) -> Callable[[], Any]:
    """A copy of the episodes, and back to it."""
    return lambda: env.set_state(env.get_state())


@contextmanager
def bleu_clock(env: GlimpseVectorEnv) -> Iterator[list[float]]:
    """Collects the seconds that scores of ended captions take."""
    whole = env._dynamics._bleu
    taken: list[float] = []
    if whole is None:
        raise ValueError("these captions are not judged")
    scores = whole.scores

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        told = scores(*arguments)
        taken.append(time.perf_counter() - began)
        return told

    whole.scores = timed  # type: ignore[method-assign, assignment]
    try:
        yield taken
    finally:
        del whole.scores


def ours(task: dict[str, Any], num_envs: int, blocks: int) -> Speed:
    """``GlimpseVectorEnv`` of N environments."""
    env = GlimpseVectorEnv(num_envs, **task)
    warm(env)
    ticking = Ticking(env, num_envs, env.features.shape[1])
    decoder = env.task.stock.decoder.speaker()
    for _ in range(40):  # until the episodes are out of step with each other
        ticking.step()
    ways = [ticking.step, decoder.products(num_envs), decoder_step(decoder, num_envs), copying(env)]
    step, floor, whole, copy = in_turns(ways, blocks)
    with bleu_clock(env) as taken:
        for _ in range(50):
            ticking.step()
    return Speed("GlimpseVectorEnv", num_envs, step, floor, whole, 1e6 * sum(taken) / 50, copy)


def alone(task: dict[str, Any], blocks: int) -> Speed:
    """One single environment."""
    threads = torch.get_num_threads()
    env = single(task)
    torch.set_num_threads(threads)
    decoder = env.task.stock.decoder.speaker()
    ticking = Ticking(env, 0, env.features.shape[1])
    step, floor, whole, copy = in_turns(
        [ticking.step, decoder.products(1), decoder_step(decoder, 1), copying(env)], blocks
    )
    return Speed("GlimpseEnv", 1, step, floor, whole, float("nan"), copy)


def side_by_side(make: Callable[..., Any], task: dict[str, Any], num_envs: int, blocks: int) -> Speed:
    """N single environments behind somebody else's vector."""
    threads = torch.get_num_threads()
    env = make([partial(single, task)] * num_envs)
    torch.set_num_threads(threads)
    mine = GlimpseEnv(**task)
    decoder = mine.task.stock.decoder.speaker()
    try:
        ticking = Ticking(env, num_envs, mine.features.shape[1])
        step, floor, whole = in_turns(
            [ticking.step, decoder.products(num_envs), decoder_step(decoder, num_envs)], blocks
        )
    finally:
        env.close()
    return Speed(getattr(make, "__name__", "vector"), num_envs, step, floor, whole, float("nan"), float("nan"))


def measure_ways(task: dict[str, Any], sizes: list[int], processes: int, blocks: int) -> list[Speed]:
    """Every way to run episodes of a task.

    Args:
        task: keyword arguments of the environments.
        sizes: numbers of environments of ours.
        processes: of other vectors; 0 leaves them out.
        blocks: of steps, of which the median counts.
    """
    ways: list[Callable[..., Speed]] = [partial(alone, task)]
    if processes:
        largest = max((size for size in sizes if size <= 256), default=sizes[0])
        ways += [partial(side_by_side, SyncVectorEnv, task, count) for count in sorted({processes, largest})]
        makers: tuple[Callable[..., Any], ...] = (AsyncVectorEnv, DummyVecEnv, SubprocVecEnv)
        ways += [partial(side_by_side, make, task, processes) for make in makers]
    ways += [partial(ours, task, size) for size in sizes]
    return [way(blocks=blocks) for way in tqdm(ways, desc=task["dataset"], unit="way", leave=False)]


def speed_table(speeds: list[Speed]) -> str:
    """Speeds as a Markdown table."""
    head = ["way", "envs", "steps/s", "µs a step", "floor", "decoder", "BLEU", "copy", "share of floor"]
    rows = [
        [
            one.way,
            str(one.num_envs),
            f"{one.steps_per_second:,.0f}",
            *(("" if np.isnan(part) else f"{part:,.0f}") for part in one[2:]),
            f"{one.floor / one.step:.2f}",
        ]
        for one in speeds
    ]
    return markdown_table(head, rows)


def ratios(speeds: list[Speed]) -> dict[str, float]:
    """How the ways compare."""
    mine = {one.num_envs: one for one in speeds if one.way == "GlimpseVectorEnv"}
    found = {f"share_of_floor_{count}": one.floor / one.step for count, one in mine.items()}
    for one in speeds:
        if one.way == "GlimpseEnv":
            found["single_step_in_decoder_steps"] = one.step / one.decoder
        elif one.way != "GlimpseVectorEnv":
            for count in {one.num_envs, 256} & mine.keys():  # beside as many of ours, and beside 256
                times = mine[count].steps_per_second / one.steps_per_second
                found[f"times_{one.way}_{one.num_envs}_at_{count}"] = times
    return found


class _PolicyClock(BaseCallback):
    """Adds up what the policy takes while rollouts are collected."""

    def _on_training_start(self) -> None:
        self.seconds = 0.0
        policy = self.model.policy
        forward = policy.forward

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            told = forward(*arguments, **named)
            self.seconds += time.perf_counter() - began
            return told

        policy.forward = timed

    def _on_step(self) -> bool:
        return True


def collecting(task: dict[str, Any], num_envs: int = 64, steps: int = 128, rounds: int = 7) -> dict[str, float]:
    """Stable-Baselines3's PPO collecting rollouts, policy time aside, beside the bare vector environment.

    Returns:
        Microseconds of a step of each, and the share of the raw rate that is left.
    """
    options = {name: value for name, value in task.items() if name != "dataset"}
    env_id = next(name for name, dataset in IDS.items() if dataset == task["dataset"])
    envs = GlimpseVecEnv(env_id, num_envs, **options)
    warm(envs.env)
    model = PPO("MultiInputPolicy", envs, n_steps=steps, device="cpu")
    model._setup_learn(steps * num_envs, callback=None)
    raw = GlimpseVectorEnv(num_envs, autoreset_mode="SameStep", **task)
    ticking = Ticking(raw, num_envs, raw.features.shape[1])
    clock = _PolicyClock()
    clock.init_callback(model)
    clock._on_training_start()
    bare, collected = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(steps):
            ticking.step()
        bare.append((time.perf_counter() - began) / steps)
        clock.seconds, began = 0.0, time.perf_counter()
        model.collect_rollouts(envs, clock, model.rollout_buffer, steps)
        collected.append((time.perf_counter() - began - clock.seconds) / steps)
    raw_step, rollout_step = (1e6 * float(np.median(one[1:])) for one in (bare, collected))
    return {"raw_step": raw_step, "rollout_step": rollout_step, "share_of_raw": raw_step / rollout_step}


class Memory(NamedTuple):
    """What this process holds, in MiB: all that is resident, and the part of it that is in no file such as a table."""

    resident: float
    private: float

    @classmethod
    def now(cls) -> Memory:
        """As the kernel says (Linux)."""
        said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return cls(*(int(said[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")))


def measure_memory(task: dict[str, Any], num_envs: int, steps: int) -> dict[str, float]:
    """What N environments hold beside the feature table, and what many steps add.

    Args:
        task: keyword arguments of the environments.
        num_envs: N.
        steps: of single episodes, in all.
    """
    table = GlimpseEnv(**task)  # opens the table, and loads what any environment loads
    warm(table)
    before = Memory.now()
    ticking = Ticking(GlimpseVectorEnv(num_envs, **task), num_envs, table.features.shape[1])
    for _ in range(40):
        ticking.step()
    begun = Memory.now()
    for _ in tqdm(range(-(-steps // num_envs)), desc="stepping", unit="step", leave=False):
        ticking.step()
    after = Memory.now()
    return {
        "num_envs": num_envs,
        "steps": steps,
        "mib_of_one_environment": before.private,
        "mib_added_by_all": begun.private - before.private,
        "mib_resident_after_40_steps": begun.resident,
        "mib_resident_at_the_end": after.resident,
        "growth": after.resident / begun.resident - 1,
    }


def _work(task: dict[str, Any], num_envs: int, blocks: int, ready: Any, told: Any) -> None:
    """One worker: steps until all have stepped for as long, and tells how many steps a second it made."""
    torch.set_num_threads(1)
    env = GlimpseVectorEnv(num_envs, **task)
    warm(env)
    ticking = Ticking(env, num_envs, env.features.shape[1])
    for _ in range(40):
        ticking.step()
    ready.wait()
    began, worked, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < blocks * 10 * SECONDS:
        ticking.step()
        steps += 1
    made = num_envs * steps
    told.put((made / (time.perf_counter() - began), made / (time.process_time() - worked)))


def measure_workers(task: dict[str, Any], num_envs: int, workers: tuple[int, ...], blocks: int) -> dict[str, float]:
    """Steps a second of several processes at once, each with N environments and one thread.

    Args:
        task: keyword arguments of the environments.
        num_envs: N.
        workers: numbers of processes.
        blocks: half seconds that each number is timed for.
    """
    spawn = multiprocessing.get_context("spawn")
    figures: dict[str, float] = {"num_envs": num_envs}
    for count in workers:
        ready, told = spawn.Barrier(count), spawn.Queue()
        processes = [spawn.Process(target=_work, args=(task, num_envs, blocks, ready, told)) for _ in range(count)]
        for process in processes:
            process.start()
        rates = np.array([told.get(timeout=600) for _ in processes])
        figures[f"steps_per_second_of_{count}"] = float(rates[:, 0].sum())
        figures[f"steps_per_processor_second_of_{count}"] = float(rates[:, 1].mean())
        for process in processes:
            process.join()
    alone = figures[f"steps_per_second_of_{workers[0]}"] / workers[0]
    for count in workers[1:]:
        figures[f"efficiency_of_{count}"] = figures[f"steps_per_second_of_{count}"] / count / alone
    return figures
