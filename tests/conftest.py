"""Tiny models that every test may use: real parts, small sizes, seeded weights."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings

from agents.attention import AdditiveAttention, AttentionConfig, save_attention
from glimpse_env.core.vocabulary import Vocabulary
from glimpse_env.datasets import WORLDS
from glimpse_env.datasets.shapes import COLOURS, LARGE, SHAPES, SIZES, SMALL
from glimpse_env.features.build import cache_folder
from glimpse_env.models.captioner import Captioner, save_captioner
from glimpse_env.models.decoder import CaptionDecoder, DecoderConfig
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig

ROOT = Path(__file__).resolve().parents[1]
IDS = {world.env_id: world.name for world in WORLDS.values()}  # of the package: tests register worlds of their own
SHAPES_CONFIGS = {config.name: config for config in (SMALL, LARGE)}

# A mutant is dead at the first example that kills it: none is made smaller. `make mutants` asks for this.
settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), database=None)

torch.set_num_threads(1)  # tiny models run faster on one
settings.register_profile("quick", max_examples=30, deadline=None)
settings.register_profile("coverage", max_examples=10, deadline=None)  # chosen by .ci/run, beside a whole `make test`
settings.register_profile("thorough", max_examples=100, deadline=None)  # chosen by `make fuzz`
settings.register_profile("soak", max_examples=3_000, deadline=None)  # chosen by `make soak`
settings.load_profile("quick")

SHAPES_WORDS = ["a", "is", "there", "and", "of", "above", "below", "left", "right", *SIZES, *COLOURS, *SHAPES]
FEATURES, HIDDEN, ATTENTION = 8, 12, 6


# Why a test may be skipped where $CI is set; what is installed there by .ci/run and the Makefile must not be missing.
MAY_BE_MISSING = (
    "no GPU here",
    "Flickr8k is not here",
    "could not import 'moviepy'",  # `make test-video` has it
    "could not import 'ray'",  # `make test-rllib` has it
    "this copy has the test split",
    "is shipped",
    "a small file system cannot be mounted here",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """In CI a test that is skipped for want of something that should be there has failed."""
    report = yield
    expected = any(reason in str(report.longrepr) for reason in MAY_BE_MISSING)
    if report.skipped and os.environ.get("CI") and not expected and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped, and in CI nothing may be missing: {report.longrepr}"
    return report


def examples(count: int) -> settings:
    """Settings that try ``count`` examples with the profile ``thorough``, the same ones every time, else a share."""
    share = min(1.0, settings().max_examples / 100)
    return settings(max_examples=max(1, round(share * count)), deadline=None, derandomize=True)


def build_captioner(
    init: str = "zeros",
    seed: int = 0,
    words: tuple[str, ...] | None = None,
    sees: EncoderConfig | None = None,
    dataset: str = "shapes",
) -> Captioner:
    """A captioner, of Shapes or another world, whose random weights make its words depend on what it reads."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        vocabulary = Vocabulary(words or SHAPES_WORDS)
        encoder = CNNEncoder(sees or EncoderConfig(feature_dim=FEATURES))
        sizes = {"embed_dim": 7, "hidden_dim": HIDDEN, "context_dim": 9}
        decoder = CaptionDecoder(DecoderConfig(len(vocabulary), FEATURES, **sizes, init=init))
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(3)
        return Captioner(encoder, decoder, vocabulary, dataset).eval().requires_grad_(False)


def same(one, other):
    """Whether two nested structures hold the same values, bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (np.ndarray, torch.Tensor)):
        return np.array_equal(np.asarray(one), np.asarray(other))
    return one == other


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many cases the fuzzing tried, where it did."""
    targets = sys.modules.get("tests.fuzz.targets")
    if targets is not None and targets.TRIED:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in targets.TRIED.items())
        terminalreporter.write_line(f"fuzzing tried {targets.TRIED.total():,} cases: {kinds}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Feature tables of a session stay in its own folder; those of photographs, slow to make, are borrowed.

    The processes of one session (pytest-xdist) share it: none encodes what another has.
    """
    usual, base = cache_folder(), tmp_path_factory.getbasetemp()
    own = (base.parent if hasattr(request.config, "workerinput") else base) / "cache"
    own.mkdir(exist_ok=True)
    for table in usual.glob("flickr8k-*"):
        with contextlib.suppress(FileExistsError):
            (own / table.name).symlink_to(table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLIMPSE_CACHE", str(own))
        yield


@pytest.fixture(autouse=True)
def same_start():
    """Torch's global generator starts every test alike, whatever ran before it in the same process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def captioner() -> Captioner:
    """A tiny captioner of Shapes."""
    return build_captioner()


@pytest.fixture(scope="session")
def captioner_file(captioner: Captioner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny captioner as a file."""
    path = tmp_path_factory.mktemp("captioner") / "captioner.safetensors"
    save_captioner(captioner, path)
    return path


@pytest.fixture(scope="session")
def attention() -> AdditiveAttention:
    """Attention with the tiny captioner's sizes."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        module = AdditiveAttention(AttentionConfig(FEATURES, HIDDEN, ATTENTION))
        return module.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def attention_file(attention: AdditiveAttention, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny attention as a file."""
    path = tmp_path_factory.mktemp("attention") / "attention.safetensors"
    save_attention(attention, path)
    return path


@pytest.fixture(scope="session")
def flickr8k_root() -> Path:
    """Folder of the real Flickr8k; tests that ask for it are skipped where it is not."""
    root = Path(os.environ.get("GLIMPSE_DATA", "")) / "flickr8k"
    if not os.environ.get("GLIMPSE_DATA") or not root.is_dir():
        pytest.skip("Flickr8k is not here; set $GLIMPSE_DATA to the folder that holds flickr8k/")
    return root


@pytest.fixture
def pygame(monkeypatch):
    """pygame without a screen."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    module = pytest.importorskip("pygame")
    yield module
    module.display.quit()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; its console is logged."""
    from train.screenshots import chromium  # what it imports is not there where the package alone is tested

    try:
        with chromium() as chrome:
            yield chrome
    except (ImportError, FileNotFoundError) as error:
        pytest.skip(str(error))
