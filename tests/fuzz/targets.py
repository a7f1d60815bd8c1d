"""Targets of fuzzing: valid files of every kind that users pass, the functions that read them, and their exceptions.

Hypothesis and atheris change the bytes of the files.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from agents.attention import AdditiveAttention, AttentionConfig, load_attention, read_agent_file, save_attention
from agents.loading import find_agent
from agents.policy_agent import POLICIES, save_policy
from glimpse_env.core.safetensors_files import FileFormatError
from glimpse_env.datasets import DataError, make_dataset
from glimpse_env.datasets.photos.files import read_photograph
from glimpse_env.datasets.shapes import Shapes
from glimpse_env.envs.single import GlimpseEnv
from glimpse_env.features.build import CHUNK, TableBuilder, open_features, read_table, table_path
from glimpse_env.features.table import FeatureTable, FeatureTableError
from glimpse_env.models.captioner import load_captioner, save_captioner
from tests.conftest import build_captioner
from train.benchmark.learning_curves import read_curve
from train.benchmark.results import as_csv, read_results, table
from train.common.formatting import write_json
from train.common.options import CommonOptions
from train.common.run_directory import RunDirectory
from train.evaluate.caption_files import read_captions

SECONDS = 5  # of processor time, for one case
MEBIBYTES = (
    2560  # by which the process may grow over all cases: a photograph just below Pillow's limit takes most of it
)
NAME = "1000268201_693b08cb0e.jpg"


class Target(NamedTuple):
    """One kind of file.

    Attributes:
        seeds: of right files, by their names, which say the format.
        read: reads the spoiled file at a path and uses what it read.
        refused: what ``read`` may raise, exactly; the message names the file.
    """

    seeds: dict[str, bytes]
    read: Callable[[Path], object]
    refused: tuple[type[Exception], ...]


TRIED: Counter[str] = Counter()  # cases of this process, by what they were


def tried(kind: str) -> None:
    """Count one more case."""
    TRIED[kind] += 1


class Slow(Exception):
    """A case took more than its seconds."""


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Stop what takes longer than ``seconds`` of processor time, or a minute of the clock.

    Raises:
        Slow: it did.
    """

    def stop(number: int, frame: object) -> None:
        raise Slow(f"more than {seconds} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 60.0))
    before = [signal.signal(signum, stop) for _, signum, _ in timers]
    try:
        for timer, _, limit in timers:
            signal.setitimer(timer, limit)
        yield
    finally:
        for (timer, signum, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(signum, handler)


def peak() -> float:
    """The most memory this process has held since it began, or since ``begin_peak``, MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def begin_peak() -> float:
    """Begin anew to look for the most memory, where the system can (Linux); what is held now, MiB."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return peak()


def check(target: Target, name: str, content: bytes) -> bool:
    """Let a target read spoiled bytes: whether it took them.

    Raises:
        AssertionError: it raised what it does not document, named no file, or left or changed one.
        Slow: it took too long.
    """
    tried("files")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        refusal = None
        try:
            with bounded():
                target.read(path)
        except target.refused as error:
            refusal = error
        assert path.read_bytes() == content
        assert not [*Path(folder).rglob("*.partial")]
        if refusal is not None:
            assert type(refusal) in target.refused, f"{type(refusal).__name__} is not documented: {refusal}"
            assert str(path.parent) in str(refusal), f"the message names no file: {refusal}"
        return refusal is None


# --- captions in three layouts ----------------------------------------------------------------------------------------


def _photo(format: str = "JPEG", mode: str = "RGB", **how: object) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    Image.fromarray(noise).convert(mode).save(file, format, **how)
    return file.getvalue()


PHOTO = _photo()
ENTRY = {
    "filename": NAME,
    "split": "train",
    "sentids": [0],
    "sentences": [{"raw": "A dog's run , <b>&</b> .", "tokens": []}],
}


def _dataset(path: Path, name: str) -> None:
    """Read every row of train of the layout a caption file belongs to, photos beside it."""
    images = path.parent / "Images"
    images.mkdir()
    (images / NAME).write_bytes(PHOTO)
    dataset = make_dataset(name, "train", path.parent)
    for row in range(len(dataset)):
        assert dataset.references(row)
        assert all(dataset.references(row))
        assert dataset.image(row).size == (16, 12)
        assert Path(dataset.image_id(row)).name == dataset.image_id(row)


def _official(path: Path) -> None:
    other = {
        "Flickr8k.token.txt": f"{NAME}#0\ta dog runs\n",
        "Flickr_8k.trainImages.txt": f"{NAME}\n",
    }
    for name, text in other.items():
        if name != path.name:
            (path.parent / name).write_text(text)
    _dataset(path, "flickr8k")


def _shard() -> bytes:
    file = io.BytesIO()
    captions = {"a.txt": b"A dog's run .\n", "b.json": b'{"captions": ["two words"], "url": ""}'}
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in captions.items():
            for kind, held in ((name, content), (f"{name[0]}.jpg", PHOTO)):
                member = tarfile.TarInfo(kind)
                member.size = len(held)
                tar.addfile(member, io.BytesIO(held))
    return file.getvalue()


def _sharded(path: Path) -> None:
    """Every row that is there has captions; its photograph is read, or its place is named."""
    dataset = make_dataset("webdataset", "train", path.parent)
    for row in range(len(dataset)):
        assert dataset.references(row)
        assert all(dataset.references(row))
        assert dataset.image_id(row).isprintable()
        dataset.image(row).load()


# --- weights ----------------------------------------------------------------------------------------------------------


def _saved(save: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def _captioner(path: Path) -> None:
    captioner = load_captioner(path)
    encoder = captioner.encoder
    annotations = encoder.encode([Image.new("RGB", encoder.config.size[::-1])])
    assert annotations.shape == (1, encoder.num_locations, captioner.decoder.config.feature_dim)
    with torch.inference_mode():
        state = captioner.decoder.init_state(annotations)
        logits, _ = captioner.decoder.step(annotations[:, 0], torch.tensor([1]), state)
    assert logits.shape == (1, len(captioner.vocabulary))


def _attention(path: Path) -> None:
    assert isinstance(read_agent_file(path).notes, dict)
    find_agent(str(path), "shapes")
    attention = load_attention(path)
    sizes = attention.config
    scores = attention(torch.zeros(1, 3, sizes.feature_dim), torch.zeros(1, sizes.hidden_dim))
    assert scores.shape == (1, 3)


def _policy_file(algo: str, **how: int) -> bytes:
    extractor = {"attention_dim": 6, "places": True}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        policy = POLICIES[algo](
            ENV.observation_space, ENV.action_space, lambda left: 0.0, features_extractor_kwargs=extractor, **how
        )
    made_of = {"algo": algo, "observe": "features", **extractor}
    return _saved(lambda path: save_policy(policy, path, made_of, _NOTES))


def _policy(path: Path) -> None:
    """Whoever is made of the file looks somewhere, twice."""
    agent = find_agent(str(path), "shapes").make(ENV, 0)
    observation, _ = ENV.reset(seed=0)
    location, state = agent.predict(observation, None, np.ones(1, bool), deterministic=True)
    assert ENV.action_space.contains(location)
    location, _ = agent.predict(observation, state, np.zeros(1, bool), deterministic=False)
    assert ENV.action_space.contains(location)


def _checkpoint(path: Path) -> None:
    state = {"step": 3, "weights": {"a": torch.ones(2, 3)}}
    directory = RunDirectory(path.parent / "run", CommonOptions(), resume=False)
    directory.save(state)
    directory.close()
    (path.parent / "run" / "checkpoint.pt").replace(path)


def _restore(path: Path) -> None:
    write_json(path.parent / "config.json", CommonOptions())
    directory = RunDirectory(path.parent, CommonOptions(), resume=True)
    try:
        directory.restore()
    finally:
        directory.close()


# --- tables, results and curves ---------------------------------------------------------------------------------------


class _Few(Shapes):
    """The first rows of a split, as photographs: their table is built at once."""

    procedural = False

    def __init__(self, images: int) -> None:
        super().__init__("val")
        self.images = images

    def __len__(self) -> int:
        return self.images


CAPTIONER = build_captioner()
ENV = GlimpseEnv(captioner=CAPTIONER, split="val")
FEW, MORE = _Few(3), _Few(CHUNK + 3)
SMALL = 1  # byte of a part, so that it holds as few rows as it may: CHUNK


def _table_files() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.npy"
        TableBuilder(path, FEW, CAPTIONER.encoder).build(progress=False)
        return path.read_bytes(), path.with_suffix(".json").read_bytes()


TABLE, IDENTITY = _table_files()


def _table(path: Path) -> None:
    for suffix, whole in ((".npy", TABLE), (".json", IDENTITY)):
        other = path.with_suffix(suffix)
        if other != path:
            other.write_bytes(whole)
    found: FeatureTable = read_table(path.with_suffix(".npy"), FEW, CAPTIONER.encoder)
    assert found[:].shape == (3, *found.shape[1:])


def _part_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        TableBuilder(Path(folder) / "table.npy", MORE, CAPTIONER.encoder, SMALL).build(progress=False)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


PARTS = _part_files()


def _parts(path: Path) -> None:
    for name, whole in PARTS.items():
        if name != path.name:
            (path.parent / name).write_bytes(whole)
    found = read_table(path.parent / "table.npy", MORE, CAPTIONER.encoder, shard_bytes=SMALL)
    assert found[:].shape == found.shape
    assert found.gather([CHUNK, 0], [3, 48]).shape == (2, found.shape[2])


class _Computed(_Few):
    """The first rows of a split, encoded when they are looked at."""

    procedural = True


COMPUTED = _Computed(11)  # a chunk of 8 rows, and one that is cut off
ROWS = CAPTIONER.encoder.encode([COMPUTED.image(row) for row in range(len(COMPUTED))]).half().numpy()


def _shared_files() -> dict[str, bytes]:
    """A table of all rows, and the checksums of its chunks."""
    with tempfile.TemporaryDirectory() as folder:
        name = table_path(COMPUTED, CAPTIONER.encoder, Path(folder))
        assert open_features(COMPUTED, CAPTIONER.encoder, folder=Path(folder))[:].any()
        return {f"x{suffix}": name.with_suffix(suffix).read_bytes() for suffix in (".npy", ".sums.npy")}


SHARED = _shared_files()


def _shared(path: Path) -> None:
    """A damaged file of procedural features is made anew, and no row of it is believed that is not right."""
    name = table_path(COMPUTED, CAPTIONER.encoder, path.parent / "shared")
    name.parent.mkdir()
    for other, whole in SHARED.items():
        content = path.read_bytes() if other == path.name else whole
        name.with_suffix(other.removeprefix("x")).write_bytes(content)
    assert np.array_equal(open_features(COMPUTED, CAPTIONER.encoder, folder=name.parent)[:], ROWS)
    assert np.array_equal(open_features(COMPUTED, CAPTIONER.encoder, folder=name.parent)[:], ROWS)  # as it is kept
    for made in path.parent.glob("shapes-val-*"):
        made.unlink()


RESULT = {
    "bleu": [0.9, 0.8, 0.7, 0.6], "sentence_bleu": 0.6, "length_ratio": 1.0, "bad_endings": 0.0, "distinct": 1.0,
    "num_images": 3, "looking": {"grounding": 0.5, "empty": None, "entropy": 1.0, "locations": 3.0, "agreement": None},
    "bleu4": {"value": 0.6, "low": 0.5, "high": 0.7}, "iqm": {"value": 0.6, "low": 0.5, "high": 0.7}, "above": None,
    "coco": {}, "seeds": ["soft"],
}  # fmt: skip
RESULTS = {
    "format": "glimpse-benchmark-2", "env": "Glimpse/Shapes-v0", "split": "test", "options": {"decoders": ["greedy"]},
    "against": None, "agents": {"soft": RESULT, "hard": {**RESULT, "above": RESULT["iqm"]}}, "failed": {},
}  # fmt: skip


def _results(path: Path) -> None:
    held = read_results(path)
    assert table(held.agents, held.against)
    assert as_csv(held.agents)
    assert held.title


def _curve(path: Path) -> None:
    read_curve(path.parent)


TURNED = Image.Exif()
TURNED[0x0112] = 6
_KINDS: dict[str, dict[str, object]] = {  # how pictures of a name are saved
    "photo.jpg": {},
    "progressive.jpg": {"progressive": True},
    "exif.jpg": {"exif": TURNED},
    "photo.png": {"format": "PNG"},
    "grey.png": {"format": "PNG", "mode": "I;16"},
    "clear.png": {"format": "PNG", "mode": "RGBA"},
    "palette.png": {"format": "PNG", "mode": "P"},
    "photo.gif": {"format": "GIF"},
    "photo.bmp": {"format": "BMP"},
    "photo.tif": {"format": "TIFF"},
    "float.tif": {"format": "TIFF", "mode": "F"},
    "photo.webp": {"format": "WEBP"},
    "photo.ico": {"format": "ICO"},
    "photo.icns": {"format": "ICNS"},
    "photo.ppm": {"format": "PPM"},
    "photo.tga": {"format": "TGA"},
    "photo.pcx": {"format": "PCX"},
    "photo.jp2": {"format": "JPEG2000"},
    "photo.eps": {"format": "EPS"},
}
_PICTURES = {name: _photo(**how) for name, how in _KINDS.items()}  # type: ignore[arg-type]
_ATTENTION = AdditiveAttention(AttentionConfig(8, 12, 6))
_NOTES = {"captioner": "shapes", "env": "Glimpse/Shapes-v0"}

TARGETS = {
    "official": Target(
        {
            "Flickr8k.token.txt": f"{NAME}#0\tA dog's run .\n{NAME}#1\ttwo words\n{NAME}.1#0\tc\n".encode(),
            "Flickr_8k.trainImages.txt": f"{NAME}\n".encode(),
        },
        _official,
        (DataError, FileNotFoundError),
    ),
    "kaggle": Target(
        {"captions.txt": f'image,caption\n{NAME},A dog runs .\n{NAME},"one, ""two"""\n'.encode()},
        lambda path: _dataset(path, "flickr8k"),
        (DataError, FileNotFoundError),
    ),
    "karpathy": Target(
        {
            "dataset_flickr8k.json": json.dumps({"images": [ENTRY], "dataset": "flickr8k"}).encode(),
            "dataset_coco.json": json.dumps({"images": [{**ENTRY, "filepath": "Images"}], "dataset": "coco"}).encode(),
        },
        lambda path: _dataset(path, path.stem.removeprefix("dataset_")),
        (DataError, FileNotFoundError),
    ),
    "shard": Target({"train-00000.tar": _shard()}, _sharded, (DataError,)),
    "image": Target(_PICTURES, lambda path: read_photograph(path).load(), (DataError,)),
    "captioner": Target(
        {"a.safetensors": _saved(lambda path: save_captioner(CAPTIONER, path, _NOTES))}, _captioner, (FileFormatError,)
    ),
    "attention": Target(
        {"a.safetensors": _saved(lambda path: save_attention(_ATTENTION, path, _NOTES))},
        _attention,
        (FileFormatError, ValueError),
    ),
    "policy": Target(
        {
            "plain.safetensors": _policy_file("ppo"),
            "recurrent.safetensors": _policy_file("recurrent-ppo", lstm_hidden_size=5),
        },
        _policy,
        (FileFormatError, ValueError),
    ),
    "checkpoint": Target({"checkpoint.pt": _saved(_checkpoint)}, _restore, (ValueError,)),
    "table": Target({"table.npy": TABLE, "table.json": IDENTITY}, _table, (FeatureTableError,)),
    "parts": Target(PARTS, _parts, (FeatureTableError,)),
    "shared": Target(SHARED, _shared, ()),
    "results": Target({"results.json": json.dumps(RESULTS).encode()}, _results, (ValueError,)),
    "captions": Target(
        {"captions.jsonl": b'{"image_id": "1.jpg", "caption": "a dog"}\n{"image_id": "2", "caption": ""}\n'},
        read_captions,
        (ValueError,),
    ),
    "curve": Target(
        {"metrics.csv": b"step,charts/steps,val/bleu4\n1,10,0.5\n2,20,\n3,30,0.6\n"}, _curve, (ValueError,)
    ),
}
