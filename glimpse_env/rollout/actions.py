"""Checks of actions: locations for hard attention, weights over locations for soft attention."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction

from glimpse_env.core.arrays import Bools

CheckedActions = npt.NDArray[np.int64] | npt.NDArray[np.float32]
WEIGHT_TOLERANCE = 1e-5  # a softmax in float32 may sum to a little over one


def check_attention(attention: str) -> None:
    """Raise ``ValueError`` unless ``attention`` is ``hard`` or ``soft``."""
    if attention not in ("hard", "soft"):
        raise ValueError(f"unknown attention {attention!r}; expected 'hard' or 'soft'")


def check_locations(
    actions: npt.ArrayLike, num_episodes: int, num_locations: int, masks: Bools | None = None
) -> npt.NDArray[np.int64]:
    """Hard actions, one of L locations for each of B episodes, as (B,), int64.

    Args:
        actions: one location per episode.
        num_episodes: B.
        num_locations: L.
        masks: which locations each episode's image has, (B, L); None when every image has all.

    Raises:
        InvalidAction: a location that is out of range or masked, or a wrong type or shape.
    """
    try:
        locations = np.asarray(actions)
    except ValueError as error:
        raise InvalidAction(f"action {actions!r} is not a location; expected an integer ({error})") from error
    if locations.dtype.kind not in "iu":
        raise InvalidAction(f"action {actions!r} is not a location; expected an integer in [0, {num_locations})")
    if locations.shape != (num_episodes,):
        raise InvalidAction(f"expected one location per episode, shape ({num_episodes},), got {locations.shape}")
    if locations.min() < 0 or locations.max() >= num_locations:
        episode = int(((locations < 0) | (locations >= num_locations)).argmax())
        raise InvalidAction(
            f"location {locations[episode]} of episode {episode} does not exist; "
            f"expected an integer in [0, {num_locations})"
        )
    if masks is not None and not (allowed := masks[np.arange(num_episodes), locations]).all():
        episode = int(allowed.argmin())
        raise InvalidAction(
            f"location {locations[episode]} of episode {episode} is masked: its image has {int(masks[episode].sum())} "
            f"of {num_locations} locations; choose one that info['action_mask'] allows"
        )
    return locations.astype(np.int64)


def check_weights(
    actions: npt.ArrayLike, num_episodes: int, num_locations: int, masks: Bools | None = None
) -> npt.NDArray[np.float32]:
    """Soft actions, weights over L locations for each of B episodes, as (B, L), float32, each row with sum one.

    Weights of masked locations become zero. Arguments are those of ``check_locations``.

    Raises:
        InvalidAction: negative, too large or non-finite weights, weights of masked locations alone, or a wrong type or
            shape.
    """
    try:
        array = np.asarray(actions)
    except ValueError as error:
        raise InvalidAction(f"action {actions!r} is not an array of weights ({error})") from error
    if array.dtype.kind not in "buif":  # numpy would read strings, None and complex numbers as floats
        raise InvalidAction(f"action {actions!r} is not an array of weights; expected real numbers in [0, 1]")
    with np.errstate(over="ignore"):  # values too large for float32 become ∞ and are refused below
        weights = array.astype(np.float32)
    if weights.shape != (num_episodes, num_locations):
        raise InvalidAction(
            f"expected weights over locations of shape {(num_episodes, num_locations)}, got {weights.shape}"
        )
    invalid = ~((weights >= 0) & (weights <= 1 + WEIGHT_TOLERANCE))
    if invalid.any():
        episode, location = (int(indices[0]) for indices in invalid.nonzero())
        raise InvalidAction(
            f"weight {weights[episode, location]} of episode {episode} is not in [0, 1]; weights over locations must "
            "be finite and in that range"
        )
    weights[weights.sum(1) == 0] = 1.0  # no preference
    if masks is not None:
        weights *= masks
        if not weights.any(1).all():
            raise InvalidAction(
                f"all weights of episode {int(weights.any(1).argmin())} are of masked locations; weigh those that "
                "info['action_mask'] allows"
            )
    weights /= weights.sum(1, keepdims=True)
    return weights
