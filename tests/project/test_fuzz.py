"""What comes from outside is read, or refused in a sentence: never a hang, a flood of memory, or half a file.

`make fuzz` runs many more of the same cases: $GLIMPSE_FUZZ says how many of each test.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import tyro
from gymnasium.error import Error, InvalidAction
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.envs.vector import GlimpseVectorEnv
from tests.conftest import same
from tests.fuzz.targets import CAPTIONER, MEBIBYTES, TARGETS, begin_peak, bounded, check, peak, tried
from train.evaluate.evaluation import Options

CASES = int(os.environ.get("GLIMPSE_FUZZ", "25"))
FUZZ = settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
SIGNS = [
    b"\0",
    b"\xff",
    b"\n",
    b"\t",
    b",",
    b'"',
    b"#",
    b"{",
    b"[",
    b"[" * 3000,
    b"9" * 5000,
    b"-",
    b"e99",
    b"../",
    b"/",
]
WORDS = ["", "../..", "/etc", "a" * 5000, "\0", "\ud800", "<script>", "NaN", "è\u2028", "C:\\x"]
NUMBERS = [0, -1, 1, 7, 2**31, 2**63, 10**9, 10**18, 10**400, 0.5, -1.5, 1e308, float("inf"), float("nan")]
ODD = st.sampled_from([None, True, [], {}, [[]], [1, 2], *WORDS, *NUMBERS])
VALUES = ODD | st.integers() | st.text(max_size=8)


@pytest.fixture(scope="module", autouse=True)
def memory_is_bounded():
    """What asks for more gets a MemoryError, and the machine keeps its own."""
    before, limits = begin_peak(), resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status")
    if status.exists():
        held = next(line for line in status.read_text().splitlines() if line.startswith("VmData"))
        resource.setrlimit(resource.RLIMIT_DATA, (int(held.split()[1]) * 1024 + 2 * MEBIBYTES * 2**20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, limits)
    assert peak() - before < MEBIBYTES


@st.composite
def spoiled(draw, content: bytes) -> bytes:
    """Bytes with some of their bits turned, cut out, doubled, cut off, or signs put between them."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 5))):
        near = draw(st.sampled_from([64, 1024, len(data) + 1]))  # headers are short, and most is decided there
        place = draw(st.integers(0, max(min(near, len(data)) - 1, 0)))
        match draw(st.sampled_from(["bit", "byte", "cut", "out", "sign", "double"])):
            case "bit" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place:]
            case "out":
                del data[place : place + draw(st.integers(1, 16))]
            case "sign":
                data[place:place] = draw(st.sampled_from(SIGNS))
            case "double":
                data[place:place] = data[place : place + draw(st.integers(1, 64))]
    return bytes(data)


@st.composite
def reshaped(draw, value: object) -> object:
    """JSON of which one value, anywhere, is another, or is gone."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 7)):
            return {name: held for name, held in value.items() if name != key}
        return {**value, key: draw(reshaped(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(reshaped(value[place])), *value[place + 1 :]]
    return draw(VALUES)


SEEDS = [pytest.param(name, seed, id=f"{name}-{seed}") for name, target in TARGETS.items() for seed in target.seeds]


@pytest.mark.parametrize(("kind", "name"), SEEDS)
def test_right_files_are_read(kind, name):
    if kind == "image" and name.endswith(".eps"):
        assert not check(TARGETS[kind], name, TARGETS[kind].seeds[name])  # PostScript is a program: it is not run
    else:
        assert check(TARGETS[kind], name, TARGETS[kind].seeds[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TARGETS)
def test_spoiled_bytes_are_read_or_refused(kind):
    @FUZZ
    @given(st.data())
    def run(data):
        name = data.draw(st.sampled_from(sorted(TARGETS[kind].seeds)))
        check(TARGETS[kind], name, data.draw(spoiled(TARGETS[kind].seeds[name])))

    run()


def json_of(name: str, content: bytes) -> object:
    """What is JSON in a file: all of it, or the metadata of safetensors."""
    if not name.endswith(".safetensors"):
        return json.loads(content)
    (size,) = struct.unpack("<Q", content[:8])
    return {key: json.loads(value) for key, value in json.loads(content[8 : 8 + size])["__metadata__"].items()}


def with_json(name: str, content: bytes, value: object) -> bytes:
    if not name.endswith(".safetensors"):
        return json.dumps(value).encode()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    held = value if isinstance(value, dict) else {"format": value}
    header["__metadata__"] = {key: json.dumps(one) for key, one in held.items()}
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + size :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, target in TARGETS.items()
        for name in target.seeds
        if name.endswith(("json", "safetensors"))
    ],
)
def test_json_of_other_values_is_read_or_refused(kind, name):
    content = TARGETS[kind].seeds[name]
    held = json_of(name, content)

    @FUZZ
    @given(reshaped(held))
    def run(value):
        check(TARGETS[kind], name, with_json(name, content, value))

    run()


# --- actions and options ----------------------------------------------------------------------------------------------

ARRAYS = st.builds(
    lambda shape, kind, value: np.full(shape, value, kind),
    st.sampled_from([(), (1,), (49,), (1, 49), (2,), (2, 49), (0,), (49, 2)]),
    st.sampled_from(["int64", "uint8", "float32", "float64", "bool", "complex64", "object", "U3"]),
    st.sampled_from([0, 1, 7]),
)
ACTIONS = VALUES | ARRAYS | st.lists(VALUES, max_size=3) | st.sampled_from([3, np.int64(3), np.uint8(48), np.zeros(49)])


def made(many, **options):
    options |= {"captioner": CAPTIONER, "split": "val"}
    return GlimpseVectorEnv(num_envs=2, **options) if many else GlimpseEnv(**options)


def taken_or_refused(env, kind, call, refused):
    """Call; what refuses leaves the environment as it was."""
    before = env.get_state()
    tried(kind)
    with bounded():
        try:
            call()
        except refused:
            assert same(env.get_state(), before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attention", ["hard", "soft"])
@pytest.mark.parametrize("many", [False, True])
def test_an_action_is_taken_or_refused_and_nothing_has_moved(attention, many):
    env = made(many, attention=attention, max_caption_length=4)

    @FUZZ
    @given(ACTIONS)
    def run(action):
        env.reset(seed=0)
        taken_or_refused(env, "actions", lambda: env.step(action), InvalidAction)

    run()
    env.close()


OPTIONS = {
    "captioner": ["shapes", "flickr8k", "nowhere", "assets", Path("shapes"), CAPTIONER],
    "split": ["train", "val", "test"],
    "attention": ["hard", "soft"],
    "observe": ["features", "index", "glimpsed"],
    "reward": ["bleu", "cider", "rouge-l", "bleu + 0.5 * cider", "bleu +", "1e999 * bleu", "-bleu", "bleu * bleu"],
    "shaped": [True, False],
    "decoding": ["greedy", "sample", "top-k", "top-p"],
    "temperature": [0.5, 1.0],
    "top_k": [1, 10],
    "top_p": [0.5, 1.0],
    "max_caption_length": [1, 5],
    "render_mode": ["rgb_array", "ansi"],
    "device": ["cpu", "meta", "cuda:99", "nowhere"],
}
SETTINGS = st.sampled_from(sorted(OPTIONS)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(OPTIONS[name]) | VALUES)
)
MANY = st.tuples(st.just("num_envs"), st.sampled_from([1, 3]) | ODD) | st.tuples(
    st.just("autoreset_mode"), st.sampled_from(["NextStep", "SameStep", "Disabled", *AutoresetMode]) | VALUES
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("many", [False, True])
def test_options_of_the_environment_work_or_are_refused(many):
    settings_of_one = SETTINGS | MANY if many else SETTINGS
    GlimpseEnv(captioner=CAPTIONER, split="val", reward="cider").close()  # counts all of train, once a process

    @settings(FUZZ, max_examples=min(CASES, 100))  # each makes an environment
    @given(st.lists(settings_of_one, min_size=1, max_size=3).map(dict))
    def run(options):
        tried("options")
        with bounded():
            try:
                env = (GlimpseVectorEnv if many else GlimpseEnv)(**{"captioner": CAPTIONER, "split": "val", **options})
            except (ValueError, TypeError, FileNotFoundError):
                return
            env.reset(seed=0)
            _, reward, _, truncated, _ = env.step(env.action_space.sample())
            assert np.isfinite(reward).all()
            assert not np.any(truncated)
            env.close()

    run()


ROWS = VALUES | st.sampled_from([3, np.int64(3), [3, 4], (3, 4), np.array([3, 4]), np.array([[3], [4]]), [[3], [4, 5]]])
MASKS = VALUES | st.sampled_from([[True, False], np.array([True, False]), np.zeros(2, bool), [[True], [True, False]]])
ASKED = VALUES | st.dictionaries(st.sampled_from(["image", "reset_mask", "seed", 1]), ROWS | MASKS, max_size=3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("many", [False, True])
def test_a_reset_is_done_or_refused_and_nothing_has_moved(many):
    env = made(many, decoding="sample")

    @FUZZ
    @given(st.just(1) | VALUES | ROWS, ASKED)
    def run(seed, asked):
        env.reset(seed=0)
        taken_or_refused(env, "resets", lambda: env.reset(seed=seed, options=asked), (ValueError, Error))

    run()
    env.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("many", [False, True])
def test_a_state_is_gone_back_to_or_refused_and_nothing_has_moved(many):
    env = made(many, decoding="sample", max_caption_length=4)
    env.reset(seed=1)
    right = env.get_state()
    missing = st.sampled_from(sorted(right)).map(
        lambda part: {name: held for name, held in right.items() if name != part}
    )
    other = st.tuples(st.sampled_from(sorted(right)), VALUES).map(lambda change: {**right, change[0]: change[1]})

    @FUZZ
    @given(VALUES | missing | other | st.just(right))
    def run(state):
        def go_back():
            env.set_state(state)
            env.step(env.action_space.sample())

        env.reset(seed=0)
        env.step(env.action_space.sample())
        taken_or_refused(env, "states", go_back, ValueError)

    run()
    env.close()


FLAGS = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Options)]
WORDS_OF_A_LINE = st.sampled_from(
    [*FLAGS, "random", "greedy", "Glimpse/Shapes-v0", "-1", "0", "1e9", "nan", "--", "<script>", "../.."]
)


@pytest.mark.filterwarnings("ignore")
def test_a_command_line_is_read_or_refused_with_status_2(capsys):
    @FUZZ
    @given(st.lists(WORDS_OF_A_LINE | st.text(max_size=5), max_size=5))
    def run(line):
        tried("command lines")
        status = None
        with bounded():
            try:
                tyro.cli(Options, args=line)
            except SystemExit as ended:
                status = ended.code
            except ValueError as error:
                status = str(error)
        capsys.readouterr()
        assert status in (None, 0, 2) or "must be" in status

    run()
