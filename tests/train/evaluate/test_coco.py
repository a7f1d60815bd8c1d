"""The COCO evaluation's figures, and what is said when what they need is missing."""

from __future__ import annotations

import shutil
import sys
from types import ModuleType

import numpy as np
import pytest

from glimpse_env.metrics.cider import DocumentFrequencies, cider_d
from glimpse_env.metrics.rouge import rouge_l
from train.evaluate.coco import check_coco, coco_scores

MODULES = [f"pycocoevalcap.{name}" for name in ("cider.cider", "meteor.meteor", "rouge.rouge")]


@pytest.fixture
def coco():
    """Tests that ask for it are skipped where the COCO evaluation cannot run."""
    for name in MODULES:
        pytest.importorskip(name)
    if shutil.which("java") is None:
        pytest.skip("METEOR needs Java")


@pytest.mark.slow
def test_figures_of_captions(coco):
    """Against the formulas in ``glimpse_env``; METEOR has none there, but knows what is the same and what is not."""
    captions = [["a", "dog", "runs", "on", "the", "grass"], [], ["the", "cat", "sits", "near", "a", "tree"]]
    references = [[captions[0], ["some", "dog", "runs"]], [["two", "men", "in", "blue"]], [["oh"], captions[2]]]
    check_coco()
    scores = coco_scores(captions, references)
    assert list(scores) == ["meteor", "rouge_l", "cider_d"]
    assert all(type(value) is float for value in scores.values())
    pairs = list(zip(references, captions, strict=True))
    assert scores["rouge_l"] == pytest.approx(np.mean([rouge_l(*pair) for pair in pairs])) == pytest.approx(2 / 3)
    frequencies = DocumentFrequencies.from_references(references)
    assert scores["cider_d"] == pytest.approx(np.mean([cider_d(*pair, frequencies) for pair in pairs]))
    assert 0.6 < scores["meteor"] < 0.9  # two captions are references and one is silent; mispaired it is 0.05


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_package_says_how_to_install_it(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # an import of it fails, as if it were not installed
    for ask in (check_coco, lambda: coco_scores([["a"]], [[["a"]]])):
        with pytest.raises(ImportError, match=r"--coco needs pycocoevalcap .*pip install 'glimpse-env\[coco\]'"):
            ask()


def test_missing_java_says_how_to_install_it(monkeypatch, tmp_path):
    for name in ("pycocoevalcap", *MODULES):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # so that only Java is missing, wherever this runs
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask in (check_coco, lambda: coco_scores([["a"]], [[["a"]]])):
        with pytest.raises(FileNotFoundError, match=r"METEOR needs Java.*apt-get install default-jre-headless"):
            ask()


def test_strings_are_refused():
    with pytest.raises(ValueError, match="got the string"):
        coco_scores(["a dog runs"], [[["a", "dog"]]])
    with pytest.raises(ValueError, match="got the string"):
        coco_scores([["a", "dog"]], [["a dog runs"]])
