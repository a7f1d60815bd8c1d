"""The image encoder: a CNN whose last feature map is read as L annotation vectors of length D (SAT §3.1.1)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from glimpse_env.core.location_grid import LocationGrid
from glimpse_env.core.safetensors_files import DeferredWeights
from glimpse_env.models.encoders.backbones import TILE_BACKBONE, TileCNN, make_backbone
from glimpse_env.rendering.inputs import Picture, as_picture

# Images per forward pass on the CPU. The feature maps of more images exceed the block size that malloc reuses (32 MiB):
# the system then clears fresh pages for every layer, which takes as long as the network itself.
CPU_BATCH = 4
# Limits of what a file, or a world, may ask for: pixels of a side and of the image, and locations.
LARGEST_SIDE, MOST_PIXELS, MOST_LOCATIONS = 1 << 14, 1 << 20, 1 << 16


@dataclass(frozen=True)
class EncoderConfig:
    """Backbone and sizes of a CNNEncoder.

    Attributes:
        backbone: ``tile`` (each location sees its own tile only), ``efficientnet-lite2`` (ImageNet weights from a
            package, no download), or the name of a torchvision classifier (``vgg19``, ``resnet101``, …).
        image_size: side of the square that images are scaled to, or height and width, pixels.
        grid: rows and columns of locations, or columns of a strip.
        feature_dim: D, length of an annotation vector.
        positions: whether to add learned position embeddings of rows and columns to the annotations.
        weights: ``own``: all weights were trained with this package and are stored in the captioner's file.
            ``published``: frozen ImageNet weights, not stored. ``tuned``: published, except for the last stage, which
            was fine-tuned and is stored.
        part: ``whole``, or ``stem`` for an encoder that stops before the last stage.

    Raises:
        ValueError: the image is too large, or the grid has frames, too many locations, or some without a pixel.
    """

    backbone: str = TILE_BACKBONE
    image_size: int | tuple[int, int] = 112
    grid: tuple[int, ...] = (7, 7)
    feature_dim: int = 64
    positions: bool = True
    weights: Literal["own", "published", "tuned"] = "own"
    part: Literal["whole", "stem"] = "whole"

    def __post_init__(self) -> None:
        if len(self.grid) > 2:
            raise ValueError(f"grid {self.grid} has frames, which no CNNEncoder sees; write an Encoder for them")
        (rows, columns), (height, width) = self.rows_and_columns, self.size
        large = max(height, width) > LARGEST_SIDE or height * width > MOST_PIXELS or rows * columns > MOST_LOCATIONS
        if large or not (1 <= rows <= height and 1 <= columns <= width):
            raise ValueError(
                f"the encoder would see {self.image_size} px as a grid {self.grid}; expected sides of at most "
                f"{LARGEST_SIDE} px, {MOST_PIXELS} px in all, {MOST_LOCATIONS} locations, and a pixel for each"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The grid as rows and columns; a strip has one row."""
        return (self.grid[0] if len(self.grid) == 2 else 1, self.grid[-1])


class CNNEncoder(nn.Module):
    """Annotation vectors a = {a_1, …, a_L}, a_i ∈ ℝ^D, of an image (SAT §3.1.1).

    An encoder has two parts. The features of the frozen part (``frozen_part``) never change, so they can be stored in
    a table. ``finish`` applies the part that may be trained with the captions: the last stage of a fine-tuned backbone,
    and the position vectors.

    A published network is built when the first image is encoded, or by ``build``. That takes seconds and 200 MiB, and
    is not needed where a table has the features of all images.

    Args:
        config: the backbone, its grid and sizes.
        stage: weights of the fine-tuned last stage, from a captioner's file; without them it starts as published.

    Raises:
        ValueError: the backbone's name is unknown, or its feature map does not have the grid and width of ``config``.
            This and the following are raised when the network is built.
        FileFormatError: the fine-tuned stage is not of this backbone.
        ImportError: the offline backbone's package is not installed.
    """

    def __init__(self, config: EncoderConfig, stage: DeferredWeights | None = None) -> None:
        super().__init__()
        self.config = config
        self._anchor: Tensor  # moves with the encoder, which may have no other weights
        self.register_buffer("_anchor", torch.empty(0, device="cpu"), persistent=False)
        self.backbone: nn.Module | None = stage  # weights that are stored in the captioner's file
        self._fixed: tuple[nn.Module] | None = None  # published weights; in a tuple, so that they are not stored
        self._scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        if config.positions:
            rows, columns = config.rows_and_columns
            self.row_position = nn.Parameter(torch.empty(rows, 1, config.feature_dim))
            self.column_position = nn.Parameter(torch.empty(1, columns, config.feature_dim))
            for position in (self.row_position, self.column_position):
                nn.init.normal_(position, std=0.5)
        if config.weights != "published" and stage is None:
            self.build()
        if config.weights == "own" and config.backbone != TILE_BACKBONE:
            with torch.no_grad():  # checks the shape of the feature map
                self(torch.zeros(1, 3, *config.size, dtype=torch.uint8))

    @property
    def name(self) -> str:
        """The backbone's name."""
        return self.config.backbone

    @property
    def grid(self) -> LocationGrid:
        """Where the locations lie."""
        (rows, columns), (height, width) = self.config.rows_and_columns, self.config.size
        return LocationGrid(self.config.grid, (height / rows, width / columns))

    @property
    def num_locations(self) -> int:
        """L, the number of locations."""
        return math.prod(self.config.grid)

    @property
    def feature_dim(self) -> int:
        """D, the length of an annotation vector."""
        return self.config.feature_dim

    @property
    def device(self) -> torch.device:
        """Where the encoder's weights are."""
        return self._anchor.device

    @property
    def encodes_single_locations(self) -> bool:
        """Whether ``encode_location`` works: whether the backbone is ``tile``, which sees each tile by itself."""
        return isinstance(self.backbone, TileCNN)

    @classmethod
    def pretrained(
        cls, backbone: str, image_size: int | tuple[int, int] = 224, part: Literal["whole", "stem"] = "whole"
    ) -> CNNEncoder:
        """A frozen encoder with published ImageNet weights; ``grid`` and ``feature_dim`` are the network's."""
        unknown = EncoderConfig(backbone, image_size, (1, 1), 0, positions=False, weights="published", part=part)
        encoder = cls(unknown)
        blank = torch.zeros(1, 3, *unknown.size, dtype=torch.uint8)
        with torch.inference_mode():
            _, features, rows, columns = encoder._feature_map(blank).shape
        encoder.config = replace(unknown, grid=(rows, columns), feature_dim=features)
        return encoder

    def tunable(self) -> CNNEncoder:
        """A copy of a published encoder whose last stage can be trained and is stored in the captioner's file.

        Raises:
            ValueError: the encoder's weights are its own.
        """
        if self.config.weights == "own":
            raise ValueError(f"encoder {self.config.backbone!r} has no published weights to fine-tune")
        return CNNEncoder(replace(self.config, weights="tuned"))

    def with_grid(self, grid: tuple[int, ...]) -> CNNEncoder:
        """A copy for a grid of more, or fewer, tiles of the same size: rows and columns, or columns of a strip.

        Its position vectors are interpolated linearly between this encoder's; the outermost are the same.

        Raises:
            ValueError: the backbone is not ``tile``.
        """
        config = self.config
        if not self.encodes_single_locations:
            raise ValueError(f"only a {TILE_BACKBONE!r} encoder can be spread over another grid, not {self.name!r}")
        rows, columns = (1, *grid)[-2:]
        old_rows, old_columns = config.rows_and_columns
        height, width = config.size[0] // old_rows * rows, config.size[1] // old_columns * columns
        size = height if height == width else (height, width)
        encoder = CNNEncoder(replace(config, grid=grid, image_size=size))
        weights = self.state_dict()
        if config.positions:
            for name, dim, size in (("row_position", 0, rows), ("column_position", 1, columns)):
                vectors = weights[name].movedim(dim, -1)  # (1, D, rows or columns)
                vectors = nn.functional.interpolate(vectors, size=size, mode="linear", align_corners=True)
                weights[name] = vectors.movedim(-1, dim)
        encoder.load_state_dict(weights)
        return encoder.to(self.device)

    def frozen_part(self) -> CNNEncoder:
        """The encoder whose features ``finish`` takes; it shares this encoder's weights."""
        config = self.config
        if config.weights == "tuned":
            return CNNEncoder.pretrained(config.backbone, config.image_size, "stem")
        if not config.positions:
            return self
        with torch.random.fork_rng(devices=()):  # the initial weights are drawn, but not used
            bare = CNNEncoder(replace(config, positions=False)).to(self.device)
        bare.backbone = self.backbone
        return bare

    def pixels(self, images: Sequence[Picture]) -> Tensor:
        """Scale ``images`` to the encoder's size, without cropping: uint8 (B, 3, H, W)."""
        size = self.config.size[::-1]
        pictures = map(as_picture, images)
        scaled = (image if image.size == size else image.resize(size, Image.Resampling.BICUBIC) for image in pictures)
        return torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode ``pixels`` (B, 3, H, W), uint8, to annotations (B, L, D), float (SAT §3.1.1)."""
        return self.finish(self._feature_map(pixels).flatten(2).transpose(1, 2))

    def _feature_map(self, pixels: Tensor) -> Tensor:
        """The frozen part's features of ``pixels``: (B, D, rows, columns)."""
        self.build()
        network = self._fixed[0].to(pixels.device) if self._fixed is not None else self.backbone or nn.Identity()
        scaled = self._normalised(pixels).contiguous(memory_format=torch.channels_last)  # 1.5× on the CPU
        feature_map: Tensor = network(scaled)
        return feature_map

    def _normalised(self, pixels: Tensor) -> Tensor:
        scaled = pixels.to(torch.get_default_dtype()) / 255
        mean, std = (scaled.new_tensor(values).reshape(1, 3, 1, 1) for values in self._scale or ((), ()))
        return (scaled - mean) / std

    def finish(self, features: Tensor) -> Tensor:
        """Annotations (B, L, D) from the frozen part's features (B, L', D')."""
        if self.config.weights == "tuned":
            self.build()
            last_stage = cast(nn.Module, self.backbone)
            maps = features.transpose(1, 2).reshape(*features.shape[::2], *self._stem_grid)  # (B, D', rows, columns)
            features = last_stage(maps).flatten(2).transpose(1, 2)
        expected = (self.num_locations, self.feature_dim)
        if features.shape[1:] != expected:
            raise ValueError(
                f"encoder {self.config.backbone!r} at {self.config.image_size} px makes annotations of shape "
                f"{tuple(features.shape[1:])}, but its configuration says {expected}"
            )
        return features + self.position if self.config.positions else features  # (B, L, D)

    @property
    def position(self) -> Tensor:
        """The position vector of each location, (L, D): its row's plus its column's."""
        return (self.row_position + self.column_position).flatten(0, 1)

    def train(self, mode: bool = True) -> CNNEncoder:
        """Set training mode, except for batch normalisation with published statistics, which stay."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode and self.config.weights == "own")
        return self

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Picture]) -> Tensor:
        """Annotations (B, L, D), float32, of pictures, without gradients."""
        training, pixels = self.training, self.pixels(inputs).to(self.device)
        self.eval()
        batches = torch.split(pixels, CPU_BATCH if pixels.device.type == "cpu" else len(pixels))
        annotations = torch.cat([self(batch).float() for batch in batches])
        self.train(training)
        return annotations

    @torch.inference_mode()
    def encode_location(self, inputs: Sequence[Picture], locations: npt.ArrayLike) -> Tensor:
        """Annotations (B, D), float32, of one location of each picture, from its tile alone: see ``Encoder``."""
        if not isinstance(self.backbone, TileCNN):
            raise ValueError(
                f"encoder {self.name!r} cannot encode a location without the others, as a {TILE_BACKBONE!r} encoder "
                "can; encode the image"
            )
        indices = np.asarray(locations, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.num_locations:
            raise IndexError(f"locations {indices.min()} to {indices.max()} of a grid {self.grid}")
        rows, columns = (torch.from_numpy(index) for index in np.divmod(indices, self.grid.columns))
        tiles = self.backbone.tiles(self.pixels(inputs))[torch.arange(len(inputs)), rows, columns]  # (B, 3, h, w)
        features: Tensor = self.backbone.layers(self._normalised(tiles.to(self.device)).contiguous())
        return (features + self.position[indices] if self.config.positions else features).float()

    def fingerprint(self) -> str:
        """A hash of configuration and weights; it changes when weights are rounded, as in a captioner's file."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode(False)
    def build(self) -> None:
        """Build the network, if it is not built yet; errors are those of the constructor."""
        if self._scale is not None:
            return
        config, pretrained = self.config, self.config.weights != "own"
        built = make_backbone(config.backbone, config.size, config.rows_and_columns, config.feature_dim, pretrained)
        network = built.stem if isinstance(built.tail, nn.Identity) else nn.Sequential(built.stem, built.tail)
        if config.weights == "own":
            self.backbone, self._scale = network, (built.mean, built.std)
            return
        fixed = network if config.weights == "published" and config.part == "whole" else built.stem
        fixed = fixed.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        if config.weights == "tuned":
            if isinstance(self.backbone, DeferredWeights):
                self.backbone.load_into(built.tail)
            self.backbone = built.tail
            self.train(self.training)
            with torch.no_grad():
                self._stem_grid = fixed(torch.zeros(1, 3, *config.size, device="cpu")).shape[2:]
        self._scale, self._fixed = (built.mean, built.std), (fixed,)
