"""Speed of single environments, of other libraries' vectors of them, and of ``GlimpseVectorEnv``."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from tqdm import tqdm

from agents.sb3 import GlimpseVecEnv
from glimpse_env.datasets import find_world
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv
from glimpse_env.models.decoder import DecoderState
from train.common.formatting import markdown_table
from train.throughput.timing import BLOCK_SECONDS, Stepper, median_times, warm_up


class Speed(NamedTuple):
    """Durations of one way to run episodes, in microseconds of a step of all environments."""

    way: str
    num_envs: int  # N
    step: float  # a step, resets included
    floor: float  # the decoder's matrix products for N episodes
    decoder: float  # the decoder's step for N episodes
    bleu: float = float("nan")  # the scores of ended captions; NaN where they cannot be timed separately
    copy: float = float("nan")  # ``get_state`` and ``set_state`` once; NaN where there are none

    @property
    def steps_per_second(self) -> float:
        """Steps of single episodes a second."""
        return 1e6 * self.num_envs / self.step


def _warm_env(task: dict[str, Any]) -> GlimpseEnv:
    """A single environment that has encoded all its images; in a process of its own it uses one thread."""
    torch.set_num_threads(1)  # callers in this process set their own number again
    env = GlimpseEnv(**task)
    warm_up(env)
    return env


def _decoder_calls(env: GlimpseEnv | GlimpseVectorEnv, batch: int) -> list[Callable[[], Any]]:
    """The matrix products and the step of an environment's decoder for B contexts."""
    decoder = env.task.assets.decoder.with_own_buffers()
    config, device = decoder.config, decoder.device
    context = torch.randn(batch, config.feature_dim, device=device).half()
    state = DecoderState(*(torch.randn(batch, config.hidden_dim, device=device) for _ in range(2)))
    token = torch.randint(4, config.vocab_size, (batch,), device=device)

    def step() -> None:
        with torch.inference_mode():
            decoder.step(context, token, state)

    return [decoder.products(batch), step]


def _timed(call: Callable[..., Any], durations: list[float]) -> Callable[..., Any]:
    """``call``, which appends the seconds it takes to ``durations``."""

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments, **options)
        durations.append(time.perf_counter() - start)
        return result

    return timed


@contextmanager
def _bleu_durations(env: GlimpseVectorEnv) -> Iterator[list[float]]:
    """Collects the seconds that scores of ended captions take."""
    bleu = env._dynamics._rewards._bleu
    if bleu is None:
        raise ValueError("these captions are not judged")
    durations: list[float] = []
    bleu.scores = _timed(bleu.scores, durations)  # type: ignore[method-assign]
    try:
        yield durations
    finally:
        del bleu.scores


def measure_env(task: dict[str, Any], num_envs: int | None, blocks: int) -> Speed:
    """``GlimpseVectorEnv`` of N environments, or a single ``GlimpseEnv`` for None."""
    env = GlimpseEnv(**task) if num_envs is None else GlimpseVectorEnv(num_envs, **task)
    warm_up(env)
    stepper = Stepper(env, num_envs or 0, env.features)
    stepper.desynchronise()
    calls = [stepper.step, *_decoder_calls(env, num_envs or 1), lambda: env.set_state(env.get_state())]
    step, floor, decoder, copy = median_times(calls, blocks)
    if num_envs is None or isinstance(env, GlimpseEnv):
        return Speed("GlimpseEnv", 1, step, floor, decoder, copy=copy)
    with _bleu_durations(env) as durations:
        for _ in range(50):
            stepper.step()
    return Speed("GlimpseVectorEnv", num_envs, step, floor, decoder, 1e6 * sum(durations) / 50, copy)


def measure_other_vector(make: Callable[..., Any], task: dict[str, Any], num_envs: int, blocks: int) -> Speed:
    """N single environments in a vector environment of Gymnasium or Stable-Baselines3."""
    threads = torch.get_num_threads()
    env = make([partial(_warm_env, task)] * num_envs)
    torch.set_num_threads(threads)
    single = GlimpseEnv(**task)
    decoder_calls = _decoder_calls(single, num_envs)
    try:
        stepper = Stepper(env, num_envs, single.features)
        step, floor, decoder = median_times([stepper.step, *decoder_calls], blocks)
    finally:
        env.close()
    return Speed(getattr(make, "__name__", "vector"), num_envs, step, floor, decoder)


def measure_ways(task: dict[str, Any], sizes: list[int], processes: int, blocks: int) -> list[Speed]:
    """Every way to run episodes of a task, each the median over blocks of steps.

    ``GlimpseVectorEnv`` has each number of environments of ``sizes``, other vectors ``processes``; 0 leaves them out.
    """
    measures: list[Callable[..., Speed]] = [partial(measure_env, task, None)]
    if processes:
        largest = max((size for size in sizes if size <= 256), default=sizes[0])
        measures += [partial(measure_other_vector, SyncVectorEnv, task, n) for n in sorted({processes, largest})]
        makers: tuple[Callable[..., Any], ...] = (AsyncVectorEnv, DummyVecEnv, SubprocVecEnv)
        measures += [partial(measure_other_vector, make, task, processes) for make in makers]
    measures += [partial(measure_env, task, size) for size in sizes]
    return [measure(blocks=blocks) for measure in tqdm(measures, desc=task["dataset"], unit="way", leave=False)]


def speed_table(speeds: list[Speed]) -> str:
    """Speeds as a Markdown table."""
    head = ["way", "envs", "steps/s", "µs a step", "floor", "decoder", "BLEU", "copy", "share of floor"]
    rows = [
        [
            speed.way,
            str(speed.num_envs),
            f"{speed.steps_per_second:,.0f}",
            *(("" if np.isnan(duration) else f"{duration:,.0f}") for duration in speed[2:]),
            f"{speed.floor / speed.step:.2f}",
        ]
        for speed in speeds
    ]
    return markdown_table(head, rows)


def speed_ratios(speeds: list[Speed]) -> dict[str, float]:
    """Ratios that compare the ways."""
    vector = {speed.num_envs: speed for speed in speeds if speed.way == "GlimpseVectorEnv"}
    ratios = {f"share_of_floor_{count}": speed.floor / speed.step for count, speed in vector.items()}
    for speed in speeds:
        if speed.way == "GlimpseEnv":
            ratios["single_step_in_decoder_steps"] = speed.step / speed.decoder
        elif speed.way != "GlimpseVectorEnv":
            for count in {speed.num_envs, 256} & vector.keys():  # with as many environments, and with 256
                times = vector[count].steps_per_second / speed.steps_per_second
                ratios[f"times_{speed.way}_{speed.num_envs}_at_{count}"] = times
    return ratios


def measure_collection(task: dict[str, Any], num_envs: int = 64, steps: int = 128, rounds: int = 7) -> dict[str, float]:
    """Rollouts of Stable-Baselines3's PPO without the time of its policy, beside the bare vector environment.

    Returns:
        Microseconds of a step of each, and the rate of rollouts as a share of the bare rate.
    """
    options = {name: value for name, value in task.items() if name != "dataset"}
    envs = GlimpseVecEnv(find_world(task["dataset"]).env_id, num_envs, **options)
    warm_up(envs.env)
    model = PPO("MultiInputPolicy", envs, n_steps=steps, device="cpu")
    _, callback = model._setup_learn(steps * num_envs, callback=None)
    policy_seconds: list[float] = []
    model.policy.forward = _timed(model.policy.forward, policy_seconds)  # type: ignore[method-assign]
    bare_env = GlimpseVectorEnv(num_envs, autoreset_mode="SameStep", **task)
    stepper = Stepper(bare_env, num_envs, bare_env.features)
    bare, rollout = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(steps):
            stepper.step()
        bare.append((time.perf_counter() - start) / steps)
        policy_seconds.clear()
        start = time.perf_counter()
        model.collect_rollouts(envs, callback, model.rollout_buffer, steps)
        rollout.append((time.perf_counter() - start - sum(policy_seconds)) / steps)
    bare_step, rollout_step = (1e6 * float(np.median(seconds[1:])) for seconds in (bare, rollout))
    return {"raw_step": bare_step, "rollout_step": rollout_step, "share_of_raw": bare_step / rollout_step}


def _work(task: dict[str, Any], num_envs: int, blocks: int, ready: Any, rates: Any) -> None:
    """One worker: steps for a fixed time, and puts its steps a second of wall and of processor time into ``rates``."""
    torch.set_num_threads(1)
    env = GlimpseVectorEnv(num_envs, **task)
    warm_up(env)
    stepper = Stepper(env, num_envs, env.features)
    stepper.desynchronise()
    ready.wait()
    start, start_process, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < blocks * 10 * BLOCK_SECONDS:
        stepper.step()
        steps += num_envs
    rates.put((steps / (time.perf_counter() - start), steps / (time.process_time() - start_process)))


def measure_workers(task: dict[str, Any], num_envs: int, workers: tuple[int, ...], blocks: int) -> dict[str, float]:
    """Steps a second of several processes at once, each with N environments and one thread.

    Each number of ``workers`` is measured for ``blocks`` half seconds.
    """
    spawn = multiprocessing.get_context("spawn")
    figures: dict[str, float] = {"num_envs": num_envs}
    for count in workers:
        ready, queue = spawn.Barrier(count), spawn.Queue()
        processes = [spawn.Process(target=_work, args=(task, num_envs, blocks, ready, queue)) for _ in range(count)]
        for process in processes:
            process.start()
        rates = np.array([queue.get(timeout=600) for _ in processes])
        figures[f"steps_per_second_of_{count}"] = float(rates[:, 0].sum())
        figures[f"steps_per_processor_second_of_{count}"] = float(rates[:, 1].mean())
        for process in processes:
            process.join()
    single_rate = figures[f"steps_per_second_of_{workers[0]}"] / workers[0]
    for count in workers[1:]:
        figures[f"efficiency_of_{count}"] = figures[f"steps_per_second_of_{count}"] / count / single_rate
    return figures
