"""Feature tables: built once, recognized, read-only, and computed row by row for procedural datasets."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from glimpse_env.datasets import DataError, Shapes
from glimpse_env.datasets.photos.karpathy import Karpathy
from glimpse_env.features.build import (
    TableBuilder,
    cache_folder,
    finish_features,
    open_features,
    read_table,
    table_path,
)
from glimpse_env.features.lazy_table import SMALL_CHUNK, ProceduralFeatures
from glimpse_env.features.table import FeatureTable, FeatureTableError
from glimpse_env.models.encoders.cnn import CNNEncoder, EncoderConfig

PHOTOS = 70  # more than one chunk of photographs


def files(folder):
    """The files of a folder without locks."""
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


def write_photo(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).resize((40, 30)).save(path)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "data"
    (folder / "Images").mkdir(parents=True)
    names = [f"{number}.png" for number in range(PHOTOS)]
    for number, name in enumerate(names):
        write_photo(folder / "Images" / name, number)
    images = [{"filename": name, "split": "val", "sentences": [{"raw": "a photo"}]} for name in names]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    return Karpathy.open("flickr8k", "val", folder)


@pytest.fixture
def encoder():
    return make_encoder(0)


def make_encoder(seed):
    torch.manual_seed(seed)
    return CNNEncoder(EncoderConfig(image_size=28, feature_dim=6)).requires_grad_(False)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def expected_table(dataset, encoder):
    rows = [encoder.encode([dataset.image(row)])[0] for row in range(len(dataset))]
    return torch.stack(rows).half().numpy()


def open_it(dataset, encoder, folder):
    return open_features(dataset, encoder, folder=folder, progress=False)


def close_half(values, expected):
    """Equal except for the last bit of float16, which depends on the batch size."""
    np.testing.assert_allclose(np.asarray(values, np.float32), np.asarray(expected, np.float32), rtol=2e-3, atol=1e-5)


def test_a_table_holds_the_encoders_annotations(photographs, encoder, folder):
    table = open_it(photographs, encoder, folder)
    expected = expected_table(photographs, encoder)
    assert table.shape == expected.shape == (PHOTOS, 49, 6)
    assert table.dtype == np.float16
    assert len(table) == PHOTOS
    close_half(table[:], expected)
    close_half(np.asarray(table), expected)
    assert np.unique(expected[:, 0], axis=0).shape[0] == PHOTOS  # all rows differ


def test_rows_of_every_kind(photographs, encoder, folder):
    table = open_it(photographs, encoder, folder)
    expected = np.asarray(table).copy()
    assert np.array_equal(table[3], expected[3])
    assert np.array_equal(table[np.int64(3)], expected[3])
    assert np.array_equal(table[[5, 3, 5]], expected[[5, 3, 5]])
    assert np.array_equal(table[np.array([69, 0])], expected[[69, 0]])
    assert np.array_equal(table[60:], expected[60:])
    assert np.array_equal(table.gather([5, 3, 5], [0, 48, 7]), expected[[5, 3, 5], [0, 48, 7]])
    with pytest.raises(IndexError):
        table[PHOTOS]


def test_a_table_is_stored_memory_mapped_and_cannot_be_written(photographs, encoder, folder):
    open_it(photographs, encoder, folder)
    path = table_path(photographs, encoder, folder)
    assert sorted(file.name for file in files(folder)) == sorted([path.name, path.with_suffix(".json").name])
    table = open_it(photographs, encoder, folder)
    before = path.read_bytes()
    table[3][:] = 0  # a fresh array
    table.gather([3], [0])[:] = 0
    assert table[3].any()
    view = np.asarray(table)
    assert isinstance(view.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0
    assert path.read_bytes() == before


def test_a_second_opening_reads_what_the_first_built(photographs, encoder, folder):
    open_it(photographs, encoder, folder)
    path = table_path(photographs, encoder, folder)
    array = np.load(path, mmap_mode="r+")
    array[2] = 42
    array.flush()
    assert (open_it(photographs, encoder, folder)[2] == 42).all()


def test_another_encoder_has_another_table(photographs, encoder, folder):
    encoder2 = make_encoder(1)
    first, second = open_it(photographs, encoder, folder), open_it(photographs, encoder2, folder)
    assert table_path(photographs, encoder, folder) != table_path(photographs, encoder2, folder)
    assert not np.array_equal(first[0], second[0])
    close_half(second[:], expected_table(photographs, encoder2))


def test_a_changed_photo_has_another_table(photographs, encoder, folder, tmp_path):
    before = table_path(photographs, encoder, folder)
    old = np.asarray(open_it(photographs, encoder, folder))
    photo = tmp_path / "data" / "Images" / "3.png"
    write_photo(photo, 1000)
    os.utime(photo, ns=(1, 1))
    assert table_path(photographs, encoder, folder) != before
    new = np.asarray(open_it(photographs, encoder, folder))
    assert [row for row in range(PHOTOS) if not np.array_equal(old[row], new[row])] == [3]


@pytest.fixture
def built(photographs, encoder, folder):
    """A stored table's path and values."""
    values = np.asarray(open_it(photographs, encoder, folder)).copy()
    return table_path(photographs, encoder, folder), values


def change_version(file):
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": "glimpse-features-0"}))


def save_pickle(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "header only": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "pickle": save_pickle,
    "shape": lambda path: np.save(path, np.zeros((PHOTOS - 1, 49, 6), np.float16)),
    "type": lambda path: np.save(path, np.zeros((PHOTOS, 49, 6), np.float32)),
    "no json": lambda path: path.with_suffix(".json").unlink(),
    "no array": lambda path: path.unlink(),
    "json": lambda path: path.with_suffix(".json").write_text('{"format": '),
    "json kind": lambda path: path.with_suffix(".json").write_text("[1]"),
    "json version": lambda path: change_version(path.with_suffix(".json")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_reported_and_built_again(photographs, encoder, folder, built, damage):
    path, values = built
    damage(path)
    with pytest.raises(FeatureTableError, match=rf"{path.name}.*delete it and it is built again"):
        read_table(path, photographs, encoder)
    with pytest.warns(UserWarning, match=rf"{path.name}.*Building it again now"):
        table = open_it(photographs, encoder, folder)
    assert np.array_equal(np.asarray(table), values)
    assert np.array_equal(np.asarray(read_table(path, photographs, encoder)), values)


def test_a_table_of_another_encoder_at_its_path_is_refused(photographs, encoder, folder, built):
    path, values = built
    TableBuilder(path, photographs, make_encoder(1)).build(progress=False)
    with pytest.raises(FeatureTableError, match="is not of these images and this encoder: its key is"):
        read_table(path, photographs, encoder)
    with pytest.warns(UserWarning, match="Building it again now"):
        table = open_it(photographs, encoder, folder)
    assert np.array_equal(np.asarray(table), values)


def test_an_interrupted_build_leaves_nothing(photographs, encoder, folder, tmp_path):
    """The last photo is cut off: the first chunk is encoded, then reading fails."""
    photo = tmp_path / "data" / "Images" / f"{PHOTOS - 1}.png"
    photo.write_bytes(photo.read_bytes()[:100])
    with pytest.raises(ValueError, match=photo.name):
        open_it(photographs, encoder, folder)
    assert files(folder) == []
    write_photo(photo, PHOTOS - 1)
    close_half(open_it(photographs, encoder, folder)[:], expected_table(photographs, encoder))


def test_an_interrupted_rebuild_is_no_table(photographs, encoder, folder, built, tmp_path):
    path, _ = built
    photo = tmp_path / "data" / "Images" / "69.png"
    status = photo.stat()
    broken = photo.read_bytes()[:100].ljust(status.st_size, b"\0")  # same size and time: the key stays
    photo.write_bytes(broken)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ValueError, match=photo.name):
        TableBuilder(path, photographs, encoder).build(progress=False)
    assert sorted(file.name for file in files(folder)) == [path.name]
    with pytest.raises(FeatureTableError, match="half written"):
        read_table(path, photographs, encoder)


def test_the_cache_is_where_the_variable_says(photographs, encoder, monkeypatch, tmp_path):
    monkeypatch.setenv("GLIMPSE_CACHE", str(tmp_path / "elsewhere"))
    open_features(photographs, encoder, progress=False)
    assert table_path(photographs, encoder).parent == tmp_path / "elsewhere"
    assert table_path(photographs, encoder).is_file()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GLIMPSE_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "home" / "elsewhere"
    monkeypatch.delenv("GLIMPSE_CACHE")
    assert cache_folder() == tmp_path / "home" / ".cache" / "glimpse_env"


class FewShapes(Shapes):
    """The first scenes of val; not a whole number of chunks."""

    LENGTH = 3 * SMALL_CHUNK - 3

    def __init__(self):
        super().__init__("val")

    def __len__(self):
        return self.LENGTH


@pytest.fixture(scope="module")
def shapes_encoder():
    torch.manual_seed(0)
    return CNNEncoder(EncoderConfig(feature_dim=6)).requires_grad_(False)


def test_procedural_features_are_the_encoders_annotations(shapes_encoder, tmp_path):
    dataset = FewShapes()
    table = open_features(dataset, shapes_encoder, folder=tmp_path)
    assert isinstance(table, ProceduralFeatures)
    assert table.shape == (len(dataset), 49, 6)
    close_half(table[:], expected_table(dataset, shapes_encoder))


class Counting(FewShapes):
    """Records the rows of the images that are drawn."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def image(self, row):
        self.drawn.append(row)
        return super().image(row)


def test_processes_share_the_rows_that_they_have_encoded(shapes_encoder, tmp_path):
    dataset1, dataset2 = Counting(), Counting()
    first = open_features(dataset1, shapes_encoder, folder=tmp_path)
    second = open_features(dataset2, shapes_encoder, folder=tmp_path)  # opened before anything was encoded
    expected = first[[2, 20]]
    assert np.array_equal(second[[2, 20]], expected)
    assert np.array_equal(open_features(dataset2, shapes_encoder, folder=tmp_path)[[2, 20]], expected)
    assert dataset2.drawn == []
    second[9]
    assert set(dataset2.drawn) == set(range(8, 16))
    first[:]
    assert set(dataset1.drawn) == {*range(8), *range(16, len(dataset1))}


def test_a_damaged_chunk_is_encoded_again(shapes_encoder, tmp_path):
    dataset = Counting()
    expected = open_features(dataset, shapes_encoder, folder=tmp_path)[:]
    (path,) = [file for file in tmp_path.glob("*.npy") if ".sums" not in file.name]
    np.load(path, mmap_mode="r+")[10, 3] = 7
    dataset.drawn.clear()
    assert np.array_equal(open_features(dataset, shapes_encoder, folder=tmp_path)[:], expected)
    assert set(dataset.drawn) == set(range(8, 16))
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(open_features(dataset, shapes_encoder, folder=tmp_path)[:], expected)


def test_without_a_writable_folder_features_stay_in_memory(shapes_encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="features are not shared between processes"):
        table = open_features(FewShapes(), shapes_encoder, folder=tmp_path / "file" / "folder")
    close_half(table[:3], expected_table(FewShapes(), shapes_encoder)[:3])


def test_partial_files_of_a_killed_process_are_removed(shapes_encoder, tmp_path):
    dataset = Shapes("val")
    path = table_path(dataset, shapes_encoder, tmp_path)
    partial = tmp_path / f".{path.name}.abc.partial"  # as SIGKILL leaves it
    partial.mkdir()
    open_features(dataset, shapes_encoder, folder=tmp_path)
    assert not partial.exists()


def test_procedural_values_do_not_depend_on_the_order_of_reading(shapes_encoder):
    dataset = FewShapes()
    eager = np.asarray(ProceduralFeatures(dataset, shapes_encoder))
    for order in (range(len(dataset)), reversed(range(len(dataset)))):
        table = ProceduralFeatures(dataset, shapes_encoder)
        for row in order:
            assert np.array_equal(table[row], eager[row])
    assert np.array_equal(ProceduralFeatures(dataset, shapes_encoder)[[20, 3, 20]], eager[[20, 3, 20]])
    assert np.array_equal(ProceduralFeatures(dataset, shapes_encoder)[5:19:3], eager[5:19:3])
    assert np.array_equal(ProceduralFeatures(dataset, shapes_encoder)[-1], eager[-1])
    assert np.array_equal(ProceduralFeatures(dataset, shapes_encoder).gather([20, 3], [1, 48]), eager[[20, 3], [1, 48]])
    rows, locations = np.array([20, 3]), np.array([1, 48])
    tensor = ProceduralFeatures(dataset, shapes_encoder).gather_tensor(rows, locations, torch.device("cpu"))
    assert np.array_equal(tensor.numpy(), eager[rows, locations])


def test_a_table_of_the_frozen_part_can_be_finished(shapes_encoder):
    dataset = FewShapes()
    frozen = open_features(dataset, shapes_encoder.frozen_part())
    finished = finish_features(frozen, shapes_encoder, range(len(dataset)))
    close = {"rtol": 4e-3, "atol": 4e-3}  # rounded to float16 twice
    np.testing.assert_allclose(finished[:], open_features(dataset, shapes_encoder)[:], **close)
    assert finished.shape == frozen.shape
    assert np.array_equal(finish_features(frozen, shapes_encoder, range(5))[:], finished[:5])
    assert not np.allclose(finished[:], frozen[:], **close)


def test_procedural_rows_are_fresh_arrays(shapes_encoder):
    table = ProceduralFeatures(FewShapes(), shapes_encoder)
    before = table[4].copy()
    table[4][:] = 0
    table[:][:] = 0
    np.asarray(table)[:] = 0
    assert np.array_equal(table[4], before)


@pytest.mark.parametrize("row", [FewShapes.LENGTH, 10_000])
def test_a_procedural_row_that_does_not_exist(shapes_encoder, row):
    table = ProceduralFeatures(FewShapes(), shapes_encoder)
    with pytest.raises(IndexError):
        table[row]
    with pytest.raises(IndexError):
        table.gather([row], [0])


def test_a_plain_array_is_a_table():
    array = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    table = FeatureTable(array)
    assert np.array_equal(table[1], array[1])
    table[1][:] = 0
    assert array[1].any()


class MaskedPhotos(Shapes):
    """Scenes whose odd locations are masked, or whose masks are wrong."""

    procedural = False

    def __init__(self, procedural, mask):
        super().__init__("val")
        self.procedural, self.mask = procedural, mask

    def __len__(self):
        return 10

    def location_mask(self, row):
        return self.mask


EVEN = np.arange(49) % 2 == 0


@pytest.mark.parametrize("procedural", [True, False])
@pytest.mark.parametrize("wrong", [EVEN.astype(np.int64), np.ones(7, bool), np.zeros(49, bool)])
def test_a_wrong_mask_leaves_no_table(procedural, wrong, encoder, folder):
    with pytest.raises(DataError, match="location"):
        open_it(MaskedPhotos(procedural, wrong), encoder, folder)[[0]]
    assert not folder.exists()


@pytest.mark.parametrize("procedural", [True, False])
def test_a_table_is_of_its_masks(procedural, encoder, folder):
    expected = open_it(MaskedPhotos(procedural, np.ones(49, bool)), encoder, folder)[:]
    assert expected.any(-1).all()
    even, odd = (open_it(MaskedPhotos(procedural, mask), encoder, folder) for mask in (EVEN, ~EVEN))
    assert np.array_equal(even[:] + odd[:], expected)  # neither reads the zeros of the other
    assert not even[:][:, ~EVEN].any()
    assert np.array_equal(even.masks, np.tile(EVEN, (10, 1)))
