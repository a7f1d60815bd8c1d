"""Memory and disk reads of this process (Linux), and the memory of many environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv
from train.throughput.timing import Stepper, warm_up


class Memory(NamedTuple):
    """Resident memory of this process in MiB."""

    resident: float
    private: float  # without the pages of files, such as a feature table
    peak: float  # the most that was resident since the process started

    @classmethod
    def current(cls) -> Memory:
        """As the kernel reports it."""
        status = _proc("status")
        return cls(*(int(status[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon", "VmHWM")))


def bytes_read_from_disk() -> int:
    """Bytes that were read from disk for this process, read-ahead included."""
    return int(_proc("io")["read_bytes"])


def _proc(name: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path("/proc/self", name).read_text().splitlines())


def measure_memory(task: dict[str, Any], num_envs: int, steps: int) -> dict[str, float]:
    """Memory of N environments besides the feature table, and its growth over ``steps`` of single episodes in all."""
    single = GlimpseEnv(**task)  # opens the table, and loads what any environment loads
    warm_up(single)
    before = Memory.current()
    stepper = Stepper(GlimpseVectorEnv(num_envs, **task), num_envs, single.features)
    stepper.desynchronise()
    start = Memory.current()
    for _ in tqdm(range(-(-steps // num_envs)), desc="stepping", unit="step", leave=False):
        stepper.step()
    end = Memory.current()
    return {
        "num_envs": num_envs,
        "steps": steps,
        "mib_of_one_environment": before.private,
        "mib_added_by_all": start.private - before.private,
        "mib_resident_after_40_steps": start.resident,
        "mib_resident_at_the_end": end.resident,
        "growth": end.resident / start.resident - 1,
    }
