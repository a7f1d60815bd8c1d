"""Ray, started here or joined where it runs already.

Knows Ray and where this checkout lies. It does not know what is computed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

SOURCES = Path(__file__).parents[1]
PACKAGES = ("glimpse_env", "agents", "train")  # what workers import
STORE = 200 << 20  # bytes of shared memory for what processes send each other


@contextmanager
def cluster(address: str | None, cores: int) -> Iterator[None]:
    """Ray while the block lasts.

    Args:
        address: of a cluster that is running, which is then given these packages; None starts one on this machine.
        cores: how many processes it may run at once, if it is started here and has no more cores.

    Raises:
        ConnectionError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths that were named here lead to the same files there
    threads = {"OMP_NUM_THREADS": "1"}  # a process a core
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        paths = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
        how |= {"num_cpus": max(os.cpu_count() or 1, cores), "include_dashboard": False, "object_store_memory": STORE}
        how["runtime_env"] = {"env_vars": {**threads, "PYTHONPATH": paths}}
    else:
        how |= {"address": address, "runtime_env": {"env_vars": threads, "py_modules": _sources()}}
    try:
        ray.init(**how)
    except ConnectionError as error:
        raise ConnectionError(f"no Ray cluster answers at {address!r} ({error}); start one with `ray start`") from error
    try:
        yield
    finally:
        ray.shutdown()


def _sources() -> list[str]:
    return [str(SOURCES / name) for name in PACKAGES]
