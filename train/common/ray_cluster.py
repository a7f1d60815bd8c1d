"""Ray, started here or joined where it runs already.

Knows Ray and where this checkout lies. It does not know what is computed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

SOURCES = Path(__file__).parents[2]
PACKAGES = ("glimpse_env", "agents", "train")  # what workers import
STORE = 200 << 20  # bytes of shared memory for what processes send each other
PLACES = ("GLIMPSE_DATA", "GLIMPSE_CACHE")  # variables that name folders, which are at the same place everywhere


@contextmanager
def cluster(address: str | None, cores: int, gpus: float = 0.0) -> Iterator[None]:
    """Ray while the block lasts.

    Args:
        address: of a cluster that is running, which is then given these packages; None starts one on this machine.
        cores: how many processes are to run at once; a cluster that is started here takes them whatever it has.
        gpus: how many GPUs they use together.

    Raises:
        ConnectionError: there is no cluster at the address.
        ValueError: this machine has fewer GPUs. One that is joined may grow: it is waited for, with a notice.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths that were named here lead to the same files there
    os.environ.setdefault("RAY_worker_niceness", "0")  # else another job leaves the workers next to nothing
    told = {"OMP_NUM_THREADS": "1"}  # a process a core
    told |= {name: str(Path(os.environ[name]).resolve()) for name in PLACES if os.environ.get(name)}
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        paths = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
        how |= {"num_cpus": max(os.cpu_count() or 1, cores), "include_dashboard": False, "object_store_memory": STORE}
        # "local": else Ray joins a cluster that happens to run here.
        how |= {"address": "local", "runtime_env": {"env_vars": {**told, "PYTHONPATH": paths}}}
    else:
        how |= {"address": address, "runtime_env": {"env_vars": told, "py_modules": _sources()}}
    try:
        ray.init(**how)
    except ConnectionError as error:
        raise ConnectionError(f"no Ray cluster answers at {address!r} ({error}); start one with `ray start`") from error
    try:
        _check_room(address, {"CPU": cores, "GPU": gpus})
        yield
    finally:
        ray.shutdown()


def _check_room(address: str | None, asked: dict[str, float]) -> None:
    """Say at once what Ray would wait for without a word."""
    there = ray.cluster_resources()
    for kind, count in asked.items():
        had = there.get(kind, 0)
        if count <= had:
            continue
        if address is None:
            raise ValueError(f"{count:g} {kind}s are asked for, and this machine has {had:g}; ask for fewer")
        print(
            f"{count:g} {kind}s are asked for, and the cluster at {address!r} has {had:g} now; if it does not grow, "
            "ask for fewer processes",
            file=sys.stderr,
        )


def _sources() -> list[str]:
    return [str(SOURCES / name) for name in PACKAGES]
