"""Options of ``train.sb3``, and their defaults by algorithm and dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from glimpse_env.datasets import find_world, world_of
from train.common.options import CommonOptions, check_learning_rate


@dataclass
class Options(CommonOptions):
    """Train where to look with Stable-Baselines3. What is left at None follows the algorithm; see RECIPES."""

    WEIGHTS_FILES = ("attention.safetensors", "policy.safetensors")

    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Score only the first N images of val; training draws from all of train."""
    env: str = "Glimpse/Shapes-v0"
    """Environment id."""
    algo: Literal["ppo", "a2c", "dqn", "maskable-ppo", "recurrent-ppo"] = "ppo"
    """Algorithm."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Attention to start from: an agent's name, a file, or a run directory; by default nothing (not recurrent-ppo)."""
    captioner: str | None = None
    """Shipped captioner or file; by default that of the agent to start from."""
    observe: Literal["features", "index", "glimpsed"] | None = None
    """What the policy sees; by default index, and glimpsed for recurrent-ppo, which remembers what it saw."""
    reward: str = "bleu"
    """The environment's reward, by name, or a sum such as "bleu + 0.5 * cider"."""
    shaped: bool = False
    """Pay every word what it adds, instead of the whole caption at its end."""
    steps: int | None = None
    """Words to be said in training, over all environments; rounded up to whole rollouts."""
    num_envs: int | None = None
    """Captions in the making at a time."""
    attention_dim: int = 64
    """A of a fresh attention."""
    learning_rate: float | None = None
    """Step of the optimiser at the start; it falls to zero along a line."""
    n_steps: int | None = None
    """Steps of every environment a rollout (all but dqn)."""
    batch_size: int | None = None
    """Steps a minibatch, at most a rollout's (all but a2c)."""
    n_epochs: int | None = None
    """Passes over a rollout (the PPOs)."""
    ent_coef: float | None = None
    """Weight of the policy's entropy (all but dqn)."""
    learning_starts: int | None = None
    """Random steps before the first update (dqn)."""
    validate_every: int = 100_000
    """Steps between two scores on val; the best weights are kept."""
    run_dir: Path | None = None
    """Where the run is kept; default runs/<dataset>-<algo>."""
    resume: bool = False
    """Go on with the run that lies in the run directory."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints."""


# Hyperparameters that are not listed keep the defaults of Stable-Baselines3. γ is 1: a caption is short and its reward
# comes at the end. Batches, rate and entropy of the PPOs were searched by hand (docs/log.md); the others were not.
Hyperparameters = dict[str, Any]
ACTOR_CRITIC: Hyperparameters = {"steps": 2_000_000, "num_envs": 256, "gamma": 1.0, "ent_coef": 0.002}
ACTOR_CRITIC |= {"learning_rate": 1e-3}
PROXIMAL = ACTOR_CRITIC | {"num_envs": 64, "n_steps": 32, "batch_size": 256, "n_epochs": 4}
PROXIMAL |= {"learning_rate": 3e-3}
REPLAY: Hyperparameters = {"buffer_size": 100_000, "learning_starts": 5_000, "batch_size": 256, "train_freq": 1}
RECIPES: dict[str, Hyperparameters] = {
    "ppo": PROXIMAL,
    "maskable-ppo": PROXIMAL,
    "recurrent-ppo": PROXIMAL | {"learning_rate": 1e-3, "lstm_hidden_size": 128},
    "a2c": ACTOR_CRITIC | {"num_envs": 32, "n_steps": 8, "learning_rate": 2e-3, "normalize_advantage": True},
    "dqn": REPLAY
    | {"steps": 1_000_000, "num_envs": 64, "learning_rate": 5e-4, "gamma": 1.0, "gradient_steps": 4}
    | {"exploration_fraction": 0.3, "target_update_interval": 1_000},
}
# Rate and entropy of train.reinforce; fewer environments at a time, for annotations of photographs are larger.
PHOTOGRAPHS: Hyperparameters = {"steps": 1_000_000, "num_envs": 64, "learning_rate": 1e-4, "ent_coef": 0.002}
FAMILIES = {"photographs": PHOTOGRAPHS}  # differences of families of worlds
TUNABLE = ("steps", "num_envs", "learning_rate", "n_steps", "batch_size", "n_epochs", "ent_coef", "learning_starts")
COUNTS = ("steps", "num_envs", "n_steps", "batch_size", "n_epochs", "attention_dim", "validate_every")


def find_hyperparameters(algo: str, dataset: str) -> Hyperparameters:
    """The hyperparameters of an algorithm on a dataset."""
    hyperparameters, changes = RECIPES[algo], FAMILIES.get(find_world(dataset).recipe, {})
    return hyperparameters | {name: changes[name] for name in hyperparameters if name in changes}


def resolve_defaults(options: Options) -> Options:
    """Fill in the options that are None, by the algorithm.

    Raises:
        ValueError: an option has no such value, or options do not fit together.
    """
    if options.algo not in RECIPES:
        raise ValueError(f"unknown algorithm {options.algo!r}; expected one of {', '.join(RECIPES)}")
    recurrent = options.algo == "recurrent-ppo"
    if recurrent and options.start is not None:
        raise ValueError(
            "recurrent-ppo cannot start from an attention: its query reads an LSTM of its own, not the decoder's "
            "hidden state; leave --from out, or choose another --algo"
        )
    dataset = world_of(options.env).name
    hyperparameters = find_hyperparameters(options.algo, dataset)
    names = [name for name in TUNABLE if name in hyperparameters]
    for name in TUNABLE:
        if name not in hyperparameters and getattr(options, name) is not None:
            raise ValueError(f"{options.algo} has no {name}; it takes {', '.join(names)}")
    defaults: dict[str, Any] = {name: hyperparameters[name] for name in names if getattr(options, name) is None}
    if options.run_dir is None:
        defaults["run_dir"] = Path("runs") / f"{dataset}-{options.algo}"
    if options.observe is None:
        defaults["observe"] = "glimpsed" if recurrent else "index"
    options = replace(options, **defaults)
    for name in COUNTS:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_learning_rate(options.learning_rate)
    rollout = (options.num_envs or 1) * (options.n_steps or 1)
    if options.n_epochs:
        if rollout < 2:
            raise ValueError(f"{options.algo} needs rollouts of at least 2 steps; pass --num-envs 2 or --n-steps 2")
        if (options.batch_size or rollout) < 2:
            raise ValueError(f"{options.algo} normalises over minibatches of at least 2 steps; pass --batch-size 2")
        options = replace(options, batch_size=min(options.batch_size or rollout, rollout))
    return replace(options, steps=-(-(options.steps or 1) // rollout) * rollout)
