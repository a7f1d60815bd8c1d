"""Shapes with few scenes, whose words are counted in a moment: ``--dataset tests.small_shapes:shapes-small``."""

from __future__ import annotations

from dataclasses import replace

import glimpse_env
from glimpse_env.datasets import find_world
from glimpse_env.datasets.shapes import SMALL, Shapes

FEW = replace(SMALL, name="shapes-small", train=400)
NAME = f"{__name__}:{FEW.name}"

glimpse_env.register_world(
    replace(
        find_world("shapes"),
        name=FEW.name,
        env_id="Glimpse/ShapesSmall-v0",
        open=lambda split, folder: Shapes(split, FEW),
        captioner="shapes",
    )
)
