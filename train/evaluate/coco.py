"""METEOR, ROUGE-L and CIDEr-D of the COCO evaluation (Chen et al. 2015), from the optional package pycocoevalcap."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from glimpse_env.metrics.ngrams import check_caption
from train.evaluate.scoring import CorpusReferences


def check_coco() -> None:
    """Check, before the captions are made, that they can be scored.

    Raises:
        ImportError: pycocoevalcap is not installed.
        FileNotFoundError: Java is not installed.
    """
    try:
        import pycocoevalcap.cider.cider
        import pycocoevalcap.meteor.meteor
        import pycocoevalcap.rouge.rouge  # noqa: F401
    except ImportError as error:
        raise ImportError(f"--coco needs pycocoevalcap ({error}); run: pip install 'glimpse-env[coco]'") from error
    if shutil.which("java") is None:
        raise FileNotFoundError(
            "METEOR needs Java, and no `java` was found on the PATH; install a Java runtime "
            "(Debian, Ubuntu: apt-get install default-jre-headless), or leave out --coco"
        )


def coco_scores(captions: Sequence[Sequence[str]], references: CorpusReferences) -> dict[str, float]:
    """METEOR and ROUGE-L, in [0, 1], and CIDEr-D, in [0, 10], over captions of many images.

    CIDEr-D takes its document frequencies from the references given, as the COCO server does.

    Raises:
        ValueError: a caption or reference is a string, not a list of words.
        ImportError: pycocoevalcap is not installed.
        FileNotFoundError: Java is not installed.
    """
    check_coco()
    for words, refs in zip(captions, references, strict=True):
        check_caption(refs, words)
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    texts = {image: [" ".join(words)] for image, words in enumerate(captions)}
    reference_texts = {image: [" ".join(words) for words in refs] for image, refs in enumerate(references)}
    scorers = {"meteor": Meteor, "rouge_l": Rouge, "cider_d": Cider}
    return {name: float(scorer().compute_score(reference_texts, texts)[0]) for name, scorer in scorers.items()}
