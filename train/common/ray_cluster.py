"""A Ray cluster for a command: started on this machine, or one that is running already."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

_SOURCES = Path(__file__).parents[2]
_PACKAGES = ("glimpse_env", "agents", "train")  # what workers import
_STORE_BYTES = 200 << 20  # of shared memory for messages between processes
_FOLDERS = ("GLIMPSE_DATA", "GLIMPSE_CACHE")  # variables that name folders, which have the same path on all machines


@contextmanager
def cluster(address: str | None, cores: int, gpus: float = 0.0) -> Iterator[None]:
    """Ray while the block lasts.

    Args:
        address: of a running cluster, to which these packages are sent; None starts one on this machine.
        cores: number of processes that run at once; a cluster that is started here may have more of them than cores.
        gpus: number of GPUs that they use together.

    Raises:
        ConnectionError: there is no cluster at the address.
        ValueError: this machine has fewer GPUs. A running cluster may grow: a notice is printed, and Ray waits.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths name the same files in workers
    os.environ.setdefault("RAY_worker_niceness", "0")  # else another job leaves the workers next to nothing
    variables = {"OMP_NUM_THREADS": "1"}  # a process a core
    variables |= {name: str(Path(os.environ[name]).resolve()) for name in _FOLDERS if os.environ.get(name)}
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        paths = os.pathsep.join(filter(None, [str(_SOURCES), os.environ.get("PYTHONPATH")]))
        arguments |= {"num_cpus": max(os.cpu_count() or 1, cores), "object_store_memory": _STORE_BYTES}
        # "local": else Ray joins a cluster that happens to run here.
        arguments |= {"address": "local", "include_dashboard": False}
        arguments["runtime_env"] = {"env_vars": {**variables, "PYTHONPATH": paths}}
    else:
        modules = [str(_SOURCES / name) for name in _PACKAGES]
        arguments |= {"address": address, "runtime_env": {"env_vars": variables, "py_modules": modules}}
    try:
        ray.init(**arguments)
    except ConnectionError as error:
        raise ConnectionError(f"no Ray cluster answers at {address!r} ({error}); start one with `ray start`") from error
    try:
        _check_resources(address, {"CPU": cores, "GPU": gpus})
        yield
    finally:
        ray.shutdown()


def _check_resources(address: str | None, required: dict[str, float]) -> None:
    """Report missing CPUs or GPUs, for which Ray would wait silently."""
    resources = ray.cluster_resources()
    for kind, count in required.items():
        available = resources.get(kind, 0)
        if count <= available:
            continue
        if address is None:
            raise ValueError(f"{count:g} {kind}s are asked for, and this machine has {available:g}; ask for fewer")
        print(
            f"{count:g} {kind}s are asked for, and the cluster at {address!r} has {available:g} now; if it does not "
            "grow, ask for fewer processes",
            file=sys.stderr,
        )
