"""Fuzz one target, or all after another, with atheris, guided by which lines of the readers a case reaches.

    python -m tests.fuzz [TARGET] [libFuzzer's options, such as -runs=5000]

A case that fails is kept as crash-* in build/fuzz, and the exit status is not 0.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

BUILD = Path("build/fuzz")

READERS = [
    "glimpse_env",
    "agents.attention",
    "agents.loading",
    "agents.policy_agent",
    "train.common",
    "train.evaluate",
    "train.benchmark.learning_curves",
    "train.benchmark.results",
]

with atheris.instrument_imports(include=READERS):
    from tests.fuzz.targets import SECONDS, TARGETS, check


def fuzz(name: str, options: list[str]) -> None:
    """Let libFuzzer spoil a target's seeds; the first byte of a case says which of the names it is read under."""
    target = TARGETS[name]
    names = sorted(target.seeds)

    def one(data: bytes) -> None:
        if data:
            check(target, names[data[0] % len(names)], data[1:])

    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for place, seed in enumerate(names):
            (Path(corpus) / seed).write_bytes(bytes([place]) + target.seeds[seed])
        limits = [
            "-runs=1500",
            f"-timeout={2 * SECONDS}",
            "-rss_limit_mb=3072",
            "-max_len=70000",
            "-seed=1",
            "-verbosity=0",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={BUILD}/", *options, corpus], one)
        atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    if len(named) == 1:
        fuzz(named[0], options)
    failed, cases = [], 0
    for name in named or TARGETS:
        print(f"{name}: ", end="", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", name, *options]
        ended = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, errors="replace")
        counted = re.search(r"number_of_executed_units: *(\d+)", ended.stderr)
        cases += int(counted[1]) if counted else 0
        print(f"{counted[1] if counted else '?'} cases{', then it failed' if ended.returncode else ''}", flush=True)
        if ended.returncode:
            print(ended.stderr, file=sys.stderr)
            failed.append(name)
    print(f"{cases} cases")
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)
