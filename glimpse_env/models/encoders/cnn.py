"""From an image to its annotation vectors: a CNN whose last feature map is read as L locations × D features.

Knows pixels, and which part of a CNN is frozen. It does not know captions, and never asks who will look.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from glimpse_env.core.safetensors_files import KeptWeights
from glimpse_env.models.encoders.backbones import TILE_BACKBONE, Backbone, make_backbone

# Images that the CPU encodes at once. The feature maps of more outgrow the blocks that malloc keeps for the next layer
# (32 MiB): the system takes them back and hands out cleared pages at every layer, which takes as long as the network.
AT_ONCE = 4


@dataclass(frozen=True)
class EncoderConfig:
    """What a CNNEncoder is made of.

    Attributes:
        backbone: ``tile`` (each location sees its own tile only), ``efficientnet-lite2`` (ImageNet weights from a
            package, no download), or the name of a torchvision classifier (``vgg19``, ``resnet101``, …).
        image_size: side of the square the image is scaled to, pixels.
        grid: rows and columns of locations.
        feature_dim: D, length of an annotation vector.
        positions: whether a learned vector for each row and each column is added to the annotations.
        weights: ``own``: all weights were trained here and travel in the captioner's file. ``published``: ImageNet
            weights, frozen. ``tuned``: published, but the last stage was fine-tuned here and travels in the file.
        part: ``whole``, or ``stem`` for an encoder that stops before the last stage.
    """

    backbone: str = TILE_BACKBONE
    image_size: int = 112
    grid: tuple[int, int] = (7, 7)
    feature_dim: int = 64
    positions: bool = True
    weights: Literal["own", "published", "tuned"] = "own"
    part: Literal["whole", "stem"] = "whole"

    @property
    def num_locations(self) -> int:
        """L, the number of locations of the grid."""
        return self.grid[0] * self.grid[1]


class CNNEncoder(nn.Module):
    """Annotation vectors a = {a_1, …, a_L}, a_i ∈ ℝ^D, of an image (SAT §3.1.1).

    An encoder is a frozen part, whose features of an image never change and can be kept in a table
    (``frozen_part``), and a part that may be trained with the captions (``finish``): the last stage of a fine-tuned
    backbone, and the vectors of the locations.

    A network that others have published is built when an image must be encoded, or by ``build``: that takes seconds
    and 200 MiB, and who has a table of all images' features never needs it.

    Args:
        config: the backbone, its grid and sizes.
        stage: weights of the fine-tuned last stage, of a captioner's file; without them it begins as published.

    Raises:
        ValueError: the backbone's name is unknown, or its feature map does not have the grid and width of ``config``.
            Of a network that is not built yet, this and what follows come when it is.
        FileFormatError: the fine-tuned stage is not of this backbone.
        ImportError: the offline backbone's package is not installed.
    """

    def __init__(self, config: EncoderConfig, stage: KeptWeights | None = None) -> None:
        super().__init__()
        self.config = config
        self.anchor: Tensor
        self.register_buffer(
            "anchor", torch.empty(0, device="cpu"), persistent=False
        )  # says which device the encoder is on
        self.backbone: nn.Module | None = stage  # weights that travel in the captioner's file
        self._fixed: tuple[nn.Module] | None = None  # published weights; in a tuple, so that they stay out of it
        self._scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        if config.positions:
            self.row_position = nn.Parameter(torch.empty(config.grid[0], 1, config.feature_dim))
            self.column_position = nn.Parameter(torch.empty(1, config.grid[1], config.feature_dim))
            for position in (self.row_position, self.column_position):
                nn.init.normal_(position, std=0.5)
        if config.weights != "published" and stage is None:
            self.build()
        if config.weights == "own" and config.backbone != TILE_BACKBONE:
            with torch.no_grad():  # what a network makes of an image is seen by trying
                self(torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8))

    @classmethod
    def pretrained(cls, backbone: str, image_size: int = 224, part: Literal["whole", "stem"] = "whole") -> CNNEncoder:
        """A frozen encoder with published ImageNet weights; grid and feature_dim are read off the network."""
        unknown = EncoderConfig(backbone, image_size, (0, 0), 0, positions=False, weights="published", part=part)
        encoder = cls(unknown)
        blank = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        with torch.inference_mode():
            _, features, rows, columns = encoder._see(blank).shape
        encoder.config = replace(unknown, grid=(rows, columns), feature_dim=features)
        return encoder

    def tunable(self) -> CNNEncoder:
        """A copy of a published encoder whose last stage can be trained and travels in the captioner's file.

        Raises:
            ValueError: the encoder's weights are its own.
        """
        if self.config.weights == "own":
            raise ValueError(f"encoder {self.config.backbone!r} has no published weights to fine-tune")
        return CNNEncoder(replace(self.config, weights="tuned"))

    def spread(self, grid: tuple[int, int]) -> CNNEncoder:
        """A copy that sees a grid of more, or fewer, tiles of the same size.

        The vectors of its rows and columns lie on the lines between those of this one, the outermost on the outermost.

        Args:
            grid: rows and columns of a square image.

        Raises:
            ValueError: the encoder does not see tiles by themselves.
        """
        config = self.config
        if config.backbone != TILE_BACKBONE or self.backbone is None:
            raise ValueError(
                f"only a {TILE_BACKBONE!r} encoder can be spread over another grid, not {config.backbone!r}"
            )
        spread = CNNEncoder(replace(config, grid=grid, image_size=config.image_size // config.grid[0] * grid[0]))
        weights = self.state_dict()
        if config.positions:
            for name, dim, size in (("row_position", 0, grid[0]), ("column_position", 1, grid[1])):
                lines = weights[name].movedim(dim, -1)  # (1, D, side)
                between = nn.functional.interpolate(lines, size=size, mode="linear", align_corners=True)
                weights[name] = between.movedim(-1, dim)
        spread.load_state_dict(weights)
        return spread.to(self.anchor.device)

    def frozen_part(self) -> CNNEncoder:
        """The encoder whose annotations ``finish`` takes; weights are shared."""
        config = self.config
        if config.weights == "tuned":
            return CNNEncoder.pretrained(config.backbone, config.image_size, "stem")
        if not config.positions:
            return self
        with torch.random.fork_rng(devices=()):  # a start of its own is drawn, and replaced
            bare = CNNEncoder(replace(config, positions=False)).to(self.anchor.device)
        bare.backbone = self.backbone
        return bare

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Scale RGB ``images`` to the encoder's square (squashed, not cropped): uint8 (B, 3, S, S)."""
        size = (self.config.image_size, self.config.image_size)
        scaled = (image if image.size == size else image.resize(size, Image.Resampling.BICUBIC) for image in images)
        return torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode ``pixels`` (B, 3, S, S), uint8, to annotations (B, L, D), float (SAT §3.1.1)."""
        feature_map = self._see(pixels)
        return self.finish(feature_map.flatten(2).transpose(1, 2))

    def _see(self, pixels: Tensor) -> Tensor:
        network, (mean, std) = self._frozen_network(pixels.device)
        scaled = pixels.to(torch.get_default_dtype()) / 255
        shift, spread = (scaled.new_tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
        scaled = ((scaled - shift) / spread).contiguous(memory_format=torch.channels_last)  # 1.5× on the CPU
        feature_map: Tensor = network(scaled)  # (B, D, rows, columns)
        return feature_map

    def finish(self, features: Tensor) -> Tensor:
        """From the frozen part's features (B, L', D') to annotations (B, L, D)."""
        if self.config.weights == "tuned":
            self.build()
        if self.config.weights == "tuned" and self.backbone is not None:
            side = round(features.shape[1] ** 0.5)  # feature maps of square images are square
            feature_map = self.backbone(features.transpose(1, 2).reshape(len(features), -1, side, side))
            features = feature_map.flatten(2).transpose(1, 2)
        expected = (self.config.num_locations, self.config.feature_dim)
        if features.shape[1:] != expected:
            raise ValueError(
                f"encoder {self.config.backbone!r} at {self.config.image_size} px makes annotations of shape "
                f"{tuple(features.shape[1:])}, but its configuration says {expected}"
            )
        return features + self.position if self.config.positions else features  # (B, L, D)

    @property
    def position(self) -> Tensor:
        """The vector of each location, (L, D): its row's plus its column's, so that above and left can be read off."""
        return (self.row_position + self.column_position).flatten(0, 1)

    def train(self, mode: bool = True) -> CNNEncoder:
        """Set training mode, but for batch normalisation, which keeps its published statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode and self.config.weights == "own")
        return self

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Annotations (B, L, D), float32, of RGB ``images``, without gradients."""
        training, pixels = self.training, self.pixels(images).to(self.anchor.device)
        self.eval()
        parts = torch.split(pixels, AT_ONCE if pixels.device.type == "cpu" else len(pixels))
        annotations = torch.cat([self(part).float() for part in parts])
        self.train(training)
        return annotations

    def fingerprint(self) -> str:
        """A string that differs between encoders whose annotations differ, be it by the rounding of their weights."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def build(self) -> None:
        """Build the network, if it is not built yet.

        Raises:
            ValueError, ImportError: as the constructor.
        """
        if self._scale is not None:
            return
        with torch.inference_mode(False):
            self._build()

    def _build(self) -> None:
        config = self.config
        built: Backbone = make_backbone(
            config.backbone, config.image_size, config.grid, config.feature_dim, pretrained=config.weights != "own"
        )
        whole = built.stem if isinstance(built.tail, nn.Identity) else nn.Sequential(built.stem, built.tail)
        fixed = whole if config.part == "whole" else built.stem
        if config.weights == "own":
            self.backbone, self._scale = whole, (built.mean, built.std)
            return
        if config.weights == "tuned":
            fixed = built.stem
            if isinstance(self.backbone, KeptWeights):
                self.backbone.give(built.tail)
            self.backbone = built.tail
            self.train(self.training)
        self._scale = built.mean, built.std
        self._fixed = (fixed.eval().requires_grad_(False).to(memory_format=torch.channels_last),)

    def _frozen_network(self, device: torch.device) -> tuple[nn.Module, tuple[tuple[float, ...], tuple[float, ...]]]:
        self.build()
        scale = self._scale or ((), ())
        if self._fixed is not None:
            return self._fixed[0].to(device), scale
        return self.backbone or nn.Identity(), scale
