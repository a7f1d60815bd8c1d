"""What an agent may do: actions of B episodes, checked before anything has moved.

Knows shapes and ranges. It does not know what an action does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction

Checked = npt.NDArray[np.int64] | npt.NDArray[np.float32]
WEIGHT_TOLERANCE = 1e-5  # a softmax in float32 may sum to a little over one


def check_locations(actions: npt.ArrayLike, episodes: int, locations: int) -> npt.NDArray[np.int64]:
    """Hard actions, one of L locations for each of B episodes, as (B,), int64.

    Raises:
        InvalidAction: a location out of range, or a wrong type or shape.
    """
    try:
        given = np.asarray(actions)
    except ValueError as error:
        raise InvalidAction(f"action {actions!r} is not a location; expected an integer ({error})") from error
    if given.dtype.kind not in "iu":
        raise InvalidAction(f"action {actions!r} is not a location; expected an integer in [0, {locations})")
    if given.shape != (episodes,):
        raise InvalidAction(f"expected one location per episode, shape ({episodes},), got {given.shape}")
    if given.min() < 0 or given.max() >= locations:
        row = int(((given < 0) | (given >= locations)).argmax())
        raise InvalidAction(
            f"location {given[row]} of episode {row} does not exist; expected an integer in [0, {locations})"
        )
    return given.astype(np.int64)


def check_weights(actions: npt.ArrayLike, episodes: int, locations: int) -> npt.NDArray[np.float32]:
    """Soft actions, weights over L locations for each of B episodes, as (B, L), float32, each row with sum one.

    Raises:
        InvalidAction: negative, too large or non-finite weights, or a wrong type or shape.
    """
    try:
        given = np.asarray(actions)
    except ValueError as error:
        raise InvalidAction(f"action {actions!r} is not an array of weights ({error})") from error
    if given.dtype.kind not in "buif":  # numpy would read strings, None and complex numbers as floats
        raise InvalidAction(f"action {actions!r} is not an array of weights; expected real numbers in [0, 1]")
    with np.errstate(over="ignore"):  # what is too large for float32 is named below
        weights = given.astype(np.float32)
    if weights.shape != (episodes, locations):
        raise InvalidAction(f"expected weights over locations of shape {(episodes, locations)}, got {weights.shape}")
    wrong = ~((weights >= 0) & (weights <= 1 + WEIGHT_TOLERANCE))
    if wrong.any():
        row, place = (int(one[0]) for one in wrong.nonzero())
        raise InvalidAction(
            f"weight {weights[row, place]} of episode {row} is not in [0, 1]; weights over locations must be finite "
            "and there"
        )
    weights[weights.sum(1) == 0] = 1.0  # no preference
    weights /= weights.sum(1, keepdims=True)
    return weights
