"""Options of ``train.reinforce``, and their defaults by dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from glimpse_env.datasets import world_of
from train.common.options import CommonOptions, check_learning_rate

BaselineName = Literal["leave-one-out", "self-critical", "moving-average", "value"]
CORPUS_BLEU = "corpus-bleu"


@dataclass
class Options(CommonOptions):
    """Train where to look from reward. Values left at None follow the environment; see RECIPES."""

    WEIGHTS_FILES = ("attention.safetensors", "captioner.safetensors")

    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Attention to start from: an agent's name, a file, or a run directory; by default nothing."""
    captioner: str | None = None
    """Shipped captioner or file; by default that of the agent to start from."""
    baseline: BaselineName = "leave-one-out"
    """What a caption's reward is compared with: the mean of the image's other captions; its greedy caption (Rennie et
    al. 2017); a running mean of all rewards (SAT §4.1); or a learned value of the state."""
    train_decoder: bool = False
    """Train the words, too."""
    reward: str | None = None
    """The environment's reward, by name, or a sum such as "bleu + 0.5 * cider". Or corpus-bleu: a caption is paid at
    its end what it adds to the logarithm of corpus BLEU-4; the environment's bleu, a sentence's, favours short
    captions, for it pays their brevity one by one."""
    reward_to_go: bool = False
    """Pay every word, and credit a glimpse with what is paid from it on, instead of the whole caption's reward."""
    normalise: bool = True
    """Divide advantages by their standard deviation over the batch."""
    images: int | None = None
    """Images a batch."""
    rollouts: int | None = None
    """K, captions an image."""
    updates: int | None = None
    """Steps of the optimiser."""
    learning_rate: float | None = None
    """Adam's step for the attention; it falls to zero along a half cosine."""
    decoder_learning_rate: float | None = None
    """Adam's step for the decoder (train-decoder)."""
    sharpen: float | None = None
    """Factor on the scores of locations, and of words where they are trained, before the first update. Above 1, what is
    drawn comes closer to the likeliest, which is what val scores; label smoothing and semi-sampling leave both flat."""
    feature_dropout: float | None = None
    """Share of the annotations' values dropped, anew for every batch; photographs that the decoder was trained on are
    otherwise described by heart."""
    entropy_bonus: float | None = None
    """Weight of the policy's entropy at the start; it falls to zero along a line."""
    anchor: float = 0.0
    """Weight of the cross-entropy of the references, which keeps the words from gaming the reward (train-decoder)."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Type of the products that words learn through (train-decoder); auto takes bfloat16 where the processor multiplies
    it natively."""
    attention_dim: int = 64
    """A of a fresh attention."""
    validate_every: int | None = None
    """Updates between two scores on val; the best weights are kept."""
    validate_beam: int | None = None
    """Hypotheses of the words on val; 1 is greedy."""
    run_dir: Path | None = None
    """Where the run is kept; default runs/<dataset>-reinforce, or -self-critical with --train-decoder."""
    resume: bool = False
    """Go on with the run that lies in the run directory."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints."""


# Defaults of a dataset, found by hand (docs/log.md).
SCENES: dict[str, Any] = {"images": 8, "rollouts": 8, "updates": 3000, "learning_rate": 2e-3, "entropy_bonus": 0.004}
SCENES |= {"validate_every": 300, "decoder_learning_rate": 8e-5, "validate_beam": 1}
SCENES |= {"reward": "bleu", "sharpen": 1.0, "feature_dropout": 0.0}
PHOTOGRAPHS = SCENES | {"images": 32, "rollouts": 5, "updates": 300, "learning_rate": 3e-4, "entropy_bonus": 0.002}
PHOTOGRAPHS |= {"validate_every": 50, "reward": CORPUS_BLEU, "sharpen": 2.0, "feature_dropout": 0.3}
RECIPES = {"scenes": SCENES, "photographs": PHOTOGRAPHS}


def _recipe(options: Options) -> dict[str, Any]:
    recipe = RECIPES[world_of(options.env).recipe]
    if options.train_decoder and recipe is PHOTOGRAPHS:
        recipe = recipe | {"updates": 400, "learning_rate": 1e-4, "validate_beam": 3}
    return recipe | {"reward": "bleu"} if options.reward_to_go else recipe


def resolve_defaults(options: Options) -> Options:
    """Fill in the options that are None, by the environment.

    Raises:
        ValueError: an option has no such value, or options do not fit together.
    """
    defaults = {name: value for name, value in _recipe(options).items() if getattr(options, name) is None}
    if options.run_dir is None:
        method = "self-critical" if options.train_decoder else "reinforce"
        defaults["run_dir"] = Path("runs") / f"{world_of(options.env).name}-{method}"
    options = replace(options, **defaults)
    if options.baseline == "leave-one-out" and (options.rollouts or 0) < 2:
        raise ValueError("leave-one-out compares captions of one image and needs at least 2; pass --rollouts 2")
    if options.reward == CORPUS_BLEU and options.reward_to_go:
        raise ValueError("corpus-bleu is paid at a caption's end, so there is nothing to go; leave out --reward-to-go")
    if options.anchor and not options.train_decoder:
        raise ValueError("an anchor keeps trained words from drifting, and these are not trained; pass --train-decoder")
    if not 0 < (options.sharpen or 0) < float("inf"):
        raise ValueError(f"sharpen must be a positive number, got {options.sharpen}")
    if not 0 <= (options.feature_dropout or 0) < 1:
        raise ValueError(f"feature_dropout must be in [0, 1), got {options.feature_dropout}")
    for name in ("images", "rollouts", "updates", "validate_every", "validate_beam"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    check_learning_rate(options.learning_rate)
    return options
