"""The options of caption training, and their defaults for each dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from glimpse_env.core.checks import check_count, check_number
from glimpse_env.datasets import find_world
from train.captioner.recipes import find_recipe
from train.common.options import CommonOptions, DatasetName, check_learning_rate


@dataclass
class Options(CommonOptions):
    """Train a captioner. Values left at None follow the dataset; see RECIPES."""

    WEIGHTS_FILES = ("captioner.safetensors", "attention.safetensors")

    dataset: DatasetName = "shapes"
    """What to caption."""
    attention: Literal["soft", "semi", "told", "none"] = "soft"
    """How the decoder looks while it is trained; told: where Shapes says that the word is to be seen, which teaches
    the words alone and leaves the attention as it was."""
    encoder: str | None = None
    """tile, efficientnet-lite2 or a torchvision backbone."""
    tune_cnn: float = 0.0
    """Fine-tune the CNN's last stage, with this share of the learning rate; 0 keeps the published weights."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Run directory, or shipped captioner, to start from; semi-sampling needs one trained with soft attention."""
    run_dir: Path | None = None
    """Where the run is kept; default runs/<dataset>-<attention>."""
    resume: bool = False
    """Go on with the run that lies in the run directory."""
    epochs: int | None = None
    """Passes over the training images, over which the learning rate falls."""
    stop_after: int | None = None
    """Stop after this many epochs, to go on from there otherwise."""
    patience: int = 4
    """Stop after this many epochs without a better BLEU-4 on val."""
    batch_images: int | None = None
    """Images a batch; each brings five captions."""
    learning_rate: float | None = None
    """Adam's step at the start; it falls to zero along a half cosine."""
    label_smoothing: float | None = None
    """Mass of the target spread over all words."""
    doubly_stochastic: float | None = None
    """Weight of the doubly stochastic term; 0 in semi-sampling, where it would keep attention from settling."""
    guidance: float | None = None
    """Weight, falling to zero along the run, of the cross-entropy between soft attention and the tiles that show
    what the words name; only Shapes knows them."""
    in_order: bool = False
    """Learn from references that tell the objects in reading order (Shapes), so that attention need not guess which
    object comes first: its h has not heard the last word yet (SAT eq. 4)."""
    freeze_captioner: bool = False
    """Train the attention alone, on the captioner of the run to start from."""
    soft_share: float = 0.5
    """Share of the images that are read softly (semi-sampling); 0 trains for hard attention alone."""
    estimator: Literal["straight-through", "reinforce"] | None = None
    """How drawn locations learn (semi-sampling): through a relaxed draw, biased and quiet (Jang et al. 2017), or by
    REINFORCE on the words still to come, unbiased and noisy (SAT eq. 12)."""
    entropy_bonus: float = 0.002
    """Weight of the entropy of the drawn locations (reinforce)."""
    mirror: bool = False
    """Show half the photographs in a mirror, but for those whose captions tell left from right."""
    dropout: bool = True
    """Drop outputs of the decoder's layers, as its configuration says; without, a frozen decoder is read as it is."""
    feature_dropout: float | None = None
    """Share of the annotations' values dropped."""
    average: float = 0.998
    """Decay of the running mean of the weights, which is what is scored and saved."""
    min_count: int | None = None
    """Words rarer than this become <unk>."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the products; auto takes bfloat16 where the processor multiplies it natively."""
    tile_steps: int = 600
    """Batches of tile classification before the first caption (tile encoder of Shapes)."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints within an epoch."""


def resolve_defaults(options: Options) -> Options:
    """Fill in the options that follow the dataset.

    Raises:
        ValueError: an option is out of its range, or options do not fit together.
    """
    _check_combinations(options)
    resolved = replace(options, **_defaults(options))
    for name in ("epochs", "batch_images", "stop_after", "patience", "min_count"):
        if getattr(resolved, name) is not None:
            check_count(name, getattr(resolved, name), 1)
    check_learning_rate(resolved.learning_rate)
    check_number("average", resolved.average, "in [0, 1)", lambda value: 0 <= value < 1)
    return resolved


def _defaults(options: Options) -> dict[str, Any]:
    """Values of the options that were left at None."""
    recipe, semi = find_recipe(options.dataset), options.attention == "semi"
    names = ("batch_images", "label_smoothing", "doubly_stochastic", "feature_dropout", "min_count", "guidance")
    defaults = {name: getattr(recipe, name) for name in (*names, "estimator")} | {
        "epochs": recipe.semi_epochs if semi else recipe.epochs,
        "learning_rate": recipe.semi_learning_rate if semi else recipe.learning_rate,
        "encoder": find_world(options.dataset).encoder,
        "run_dir": Path("runs") / f"{find_world(options.dataset).name}-{options.attention}",
    }
    if semi:
        defaults["doubly_stochastic"] = 0.0
    return {name: value for name, value in defaults.items() if getattr(options, name) is None}


def _check_combinations(options: Options) -> None:
    world = find_world(options.dataset)
    if options.attention == "semi" and options.start is None:
        raise ValueError(
            "semi-sampling starts from a decoder trained with soft attention, or it learns to ignore where it looks; "
            f"pass its run directory: --from runs/{world.name}-soft"
        )
    if options.freeze_captioner and options.start is None:
        raise ValueError("a fresh captioner cannot be frozen; pass the run directory of a trained one with --from")
    if options.in_order and not world.grounded:
        raise ValueError(f"the captions of {options.dataset} have no reading order; leave out --in-order")
    if options.attention == "told" and not world.grounded:
        raise ValueError(f"nobody tells where the words of {options.dataset} are to be seen; pass --attention soft")
    if options.mirror and not find_recipe(options.dataset).mirrorable:
        raise ValueError(
            f"the captions of {options.dataset} tell left from right, so no scene may be mirrored; leave out --mirror"
        )
    if not 0 <= options.soft_share < 1:
        raise ValueError(
            f"soft_share must be in [0, 1), got {options.soft_share}; to read every image softly pass --attention soft"
        )
