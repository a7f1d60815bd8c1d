"""Fuzz one target, or all after another, with atheris, guided by which lines of the readers a case reaches.

    python -m tests.fuzz [TARGET] [libFuzzer's options, such as -runs=5000]

A case that fails is kept as crash-* in build/fuzz, and the exit status is not 0.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

BUILD = Path("build/fuzz")

with atheris.instrument_imports(include=["glimpse_env.datasets", "glimpse_env.weights", "glimpse_env.captioner"]):
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
        ]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={BUILD}/", *options, corpus], one)
        atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    if len(named) == 1:
        fuzz(named[0], options)
    failed = []
    for name in named or TARGETS:
        print(f"{name}: ", end="", flush=True)
        status = subprocess.run([sys.executable, "-m", "tests.fuzz", name, *options], check=False).returncode
        print("failed" if status else "done", flush=True)
        failed += [name] if status else []
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)
