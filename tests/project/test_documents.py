"""README and the tutorials: every block is run, in order, in a folder of its own, and prints what the text says.

Of the guides (environment, agents, decoding) the Python blocks are run.

Python blocks of a document share a namespace, ``sh`` blocks are real commands, and a ``text`` block is what the block
before it prints, ``...`` standing for anything. What takes longer than a test may is run with small numbers, which a
comment before the block names, so that what is run is always made of what is shown:

    <!-- quick: 100_000 -> 2_048 -->     in the next block, the one is replaced by the other; ", " and more may follow
    <!-- quick: --limit 8 -->            options for every command of the next block
    <!-- always quick: --limit 8 -->     the same, in the slow tests, too, which run all else as it is shown
    <!-- file: my_agent.py -->           the next block is saved under that name, too

A document that is about Flickr8k is skipped where the photographs are not; ``few`` is then a folder with a dozen of
them, for a training with ``--limit`` would still show all of them to the CNN.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt
from sybil import Document, Example, Lexeme, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from glimpse_env.datasets import make_dataset
from tests.conftest import ROOT
from train.cards.lineage import read_trainings

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *TUTORIALS]
GUIDES = [ROOT / "docs" / f"{name}.md" for name in ("agents", "decoding", "environment")]
COMMENT = re.compile(r"^<!-- (quick|always quick|file): (.+) -->\n(?=```|<!-- )", re.MULTILINE)
SHOWN = ("python", "sh", "text")


class Reader:
    """Runs the blocks of one document.

    Args:
        folder: where commands run.
        whole: whether blocks run as they are shown, but for those that are always quick.
    """

    def __init__(self, folder: Path, whole: bool) -> None:
        self.folder, self.whole = folder, whole
        self.said: dict[str, str] = {}  # by the comments before the block to come
        self.printed: str | None = None  # by the last block
        self.ran: Counter[str] = Counter()

    def read(self, path: Path) -> Document:
        """The document, its regions tied to this reader."""
        blocks = [CodeBlockParser(name, getattr(self, name)) for name in SHOWN]
        document = Sybil([*blocks, self.comments], path=str(ROOT)).parse(path)
        document.namespace |= {"__name__": path.stem, "WHOLE": self.whole}
        return document

    def comments(self, document: Document):
        for match in COMMENT.finditer(document.text):
            yield Region(match.start(), match.end(), (match[1], match[2]), self.comment)

    def comment(self, example: Example) -> None:
        kind, text = example.parsed
        self.said[kind] = text

    def shortening(self) -> str:
        always, quick = self.said.get("always quick"), self.said.get("quick")
        return always or ("" if self.whole else quick) or ""

    def start(self, name: str) -> None:
        self.ran[name] += 1
        self.printed = None

    def python(self, example: Example) -> None:
        self.start("python")
        shown, change = example.parsed, self.shortening()
        source = str(shown)
        for one in filter(None, change.split(", ")):
            before, _, after = one.partition(" -> ")
            assert before in source, f"line {example.line}: {before!r} is to be replaced, but is not there"
            source = source.replace(before, after)
        if "file" in self.said:
            (self.folder / self.said["file"]).write_text(str(shown))
        self.said = {}
        example.parsed = Lexeme(source, shown.offset, shown.line_offset)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            PythonEvaluator()(example)
        self.printed = printed.getvalue()

    def sh(self, example: Example) -> None:
        self.start("sh")
        lines = str(example.parsed).replace("\\\n", " ").strip().splitlines()
        added = self.shortening()
        self.said = {}
        lines = [f"{line.partition('  #')[0].rstrip()} {added}" for line in lines]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"line {example.line}: {lines} ended with {done.returncode}\n{done.stderr}"
        self.printed = done.stdout

    def text(self, example: Example) -> None:
        assert self.printed is not None, f"line {example.line}: nothing was run before this output"
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if not doctest.OutputChecker().check_output(str(example.parsed), self.printed, flags):
            raise AssertionError(f"line {example.line}: expected\n{example.parsed}\nbut it printed\n{self.printed}")
        self.start("text")


class Fence(NamedTuple):
    """A block of code of a Markdown file: its language, ``None`` where it is indented, and its first line."""

    language: str | None
    line: int


def fences(text: str) -> list[Fence]:
    """Every block of code, found by another parser than the one that runs them."""
    tokens = MarkdownIt().parse(text)
    return [
        Fence(token.info if token.type == "fence" else None, token.map[0] + 1)
        for token in tokens
        if token.type in ("fence", "code_block")
    ]


def run(path: Path, folder: Path, whole: bool) -> Reader:
    reader = Reader(folder, whole)
    for example in reader.read(path):
        example.evaluate()
    return reader


def take_few(root: Path, few: Path) -> None:
    """The first photographs of train and val in a folder of their own, in Karpathy's layout."""
    (few / "Images").mkdir(parents=True)
    images = []
    for split, count in (("train", 8), ("val", 4)):
        dataset = make_dataset("flickr8k", split, root)
        for row in range(count):
            name = dataset.image_id(row)
            (few / "Images" / name).symlink_to(next(root.rglob(name)))
            sentences = [{"raw": " ".join(words)} for words in dataset.references(row)]
            images.append({"filename": name, "split": split, "sentences": sentences})
    (few / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))


@pytest.fixture
def document(request, tmp_path, monkeypatch) -> Path:
    """A document whose needs are met; the working directory is a folder of its own that looks like a checkout."""
    if request.param.stem.startswith("flickr8k"):
        take_few(request.getfixturevalue("flickr8k_root"), tmp_path / "few")
    for name in ("Makefile", "docs", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return request.param


SLOW = ("flickr8k-table", "own-agent", "own-dataset", "train-ppo")  # so many commands take a minute even in short


def of_documents(quick: bool):
    """Parameters: all documents, or those with quick blocks."""
    slow = SLOW if quick else [path.stem for path in DOCUMENTS]
    return [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in slow else [])
        for path in DOCUMENTS
        if quick or "<!-- quick: " in path.read_text(encoding="utf-8")
    ]


def run_every_block(document: Path, folder: Path, whole: bool) -> None:
    text = document.read_text(encoding="utf-8")
    shown = Counter(fence.language for fence in fences(text))
    shown["python"] += text.count("<!-- invisible-code-block: python")
    assert run(document, folder, whole).ran == shown


@pytest.mark.parametrize("document", of_documents(quick=True), indirect=True)
def test_every_block_runs(document, tmp_path):
    run_every_block(document, tmp_path, whole=False)


@pytest.mark.parametrize("document", of_documents(quick=False), indirect=True)
def test_every_block_runs_as_it_is_shown(document, tmp_path):
    run_every_block(document, tmp_path, whole=True)


@pytest.mark.parametrize("document", [pytest.param(path, id=path.stem) for path in GUIDES], indirect=True)
def test_every_python_block_of_a_guide_runs(document, tmp_path):
    if "RecordVideo" in document.read_text(encoding="utf-8"):
        pytest.importorskip("moviepy")  # `make test-video` has it
    reader = run(document, tmp_path, whole=False)
    shown = Counter(fence.language for fence in fences(document.read_text(encoding="utf-8")))
    assert reader.ran["python"] == shown["python"] > 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_no_block_is_of_a_kind_that_is_not_run(path):
    text = path.read_text(encoding="utf-8")
    found = fences(text)
    assert found
    assert [fence for fence in found if fence.language not in SHOWN] == []
    regions = [region for _, region in Reader(Path(), whole=False).read(path).regions]
    begun = {text.count("\n", 0, region.start) + 1 for region in regions}
    assert [fence for fence in found if fence.line not in begun] == []
    assert len(re.findall(r"<!-- (?:always quick|quick|file)\b", text)) == len(COMMENT.findall(text))


def test_the_trainings_of_flickr8k_are_those_of_make_weights():
    made = {training.command for training in read_trainings().values()}
    text = (ROOT / "docs" / "tutorials" / "flickr8k-table.md").read_text(encoding="utf-8").replace("\\\n", "")
    shown = [" ".join(line.split()) for line in re.findall(r"^python -m train\.(?:captioner|reinforce) .*", text, re.M)]
    assert len(shown) == 7
    assert [line for line in shown if line not in made] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", r"line 5: expected\n2\n\nbut it printed\n1\n"),
        ("```sh\nexit 3\n```\n", "line 1: .* ended with 3"),
        ("```sh\nfalse\ntrue\n```\n", "line 1: .* ended with 1"),
        ("```text\n1\n```\n", "line 1: nothing was run before"),
        ("<!-- quick: 5 -> 2 -->\n```python\nprint(1)\n```\n", "'5' is to be replaced"),
        ("<!-- invisible-code-block: python\nassert 1 == 2, 'unseen'\n-->\n", "unseen"),
    ],
)
def test_what_is_wrong_fails(tmp_path, text, message):
    path = tmp_path / "document.md"
    path.write_text(text)
    with pytest.raises(AssertionError, match=message):
        run(path, tmp_path, whole=False)


def test_comments_change_what_runs_and_nothing_else(tmp_path):
    path = tmp_path / "document.md"
    path.write_text(
        "<!-- quick: 10_000 -> 2 -->\n<!-- file: saved.py -->\n```python\nprint(10_000)\n```\n\n"
        "```text\nN\n```\n\n<!-- always quick: -n -->\n```sh\necho -e one  # a remark\necho -e \\\n  two\n```\n"
    )
    for whole, printed in ((False, "2"), (True, "10000")):
        reader = Reader(tmp_path, whole)
        document = reader.read(path)
        comments = list(document)
        for example in comments[:3]:
            example.evaluate()
        assert reader.printed == f"{printed}\n"
        assert (tmp_path / "saved.py").read_text() == "print(10_000)\n"
        for example in comments[4:]:
            example.evaluate()
        assert reader.printed == "one -n\ntwo -n\n"
