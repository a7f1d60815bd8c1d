"""Inputs of a world as pictures: what encoders scale and what frames show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = Image.Image | npt.NDArray[np.uint8]


def as_picture(image: Picture) -> Image.Image:
    """An input as an RGB image, itself if it is one.

    Args:
        image: a picture of any mode, or uint8 (H, W) or (H, W, 3).

    Raises:
        ValueError: an array of another type or shape.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ValueError(
                f"an input is {image.dtype} of shape {image.shape}; expected a PIL image, or uint8 (H, W) or (H, W, 3)"
            )
        image = Image.fromarray(image)
    return image if image.mode == "RGB" else image.convert("RGB")
