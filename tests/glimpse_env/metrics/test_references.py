"""A table of references holds their n-grams as integers in ascending order."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.metrics.references import _NGRAM_BYTES, ReferenceTable
from tests.conftest import examples

VOCAB_SIZE = 3
references = st.lists(st.lists(st.integers(-1, VOCAB_SIZE - 1), max_size=9), min_size=1, max_size=4).filter(any)
tables = st.lists(references, min_size=1, max_size=4)


def limits_of(refs, orders):
    """The most times that one reference has each n-gram of known words, from the definition."""
    limits: Counter[tuple[int, ...]] = Counter()
    for reference in refs:
        for order in range(1, orders + 1):
            grams = [tuple(reference[i : i + order]) for i in range(len(reference) - order + 1)]
            limits |= Counter(gram for gram in grams if min(gram) >= 0)
    return limits


def read_grams(keys, limits):
    """The n-grams of a row and their limits: the digits in base V + 1 are the words, one higher."""
    grams = []
    for key in keys[keys < ReferenceTable.SENTINEL].tolist():
        gram = []
        while key:
            key, digit = divmod(key, VOCAB_SIZE + 1)
            gram.insert(0, digit - 1)
        grams.append(tuple(gram))
    return dict(zip(grams, limits.tolist(), strict=False))


@examples(400)
@given(tables, st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_ngram_occurs_once_with_its_limit_in_ascending_order(images, orders, shuffler):
    table = ReferenceTable(lambda row: images[row], len(images), VOCAB_SIZE, orders)
    for row in shuffler.sample(range(len(images)), len(images)):
        table[np.array([row])]  # prepared one by one, so that the arrays grow
    prepared = table[np.arange(len(images))]
    for refs, keys, limits, ends in zip(images, prepared.keys, prepared.limits, prepared.ends, strict=True):
        known = int((keys < table.SENTINEL).sum())
        assert np.all(np.diff(keys[: known + 1]) > 0)
        assert np.all(keys[known:] == table.SENTINEL)  # at least one: every key that is searched is smaller
        assert len(keys) > known
        assert read_grams(keys, limits) == limits_of(refs, orders)
        assert ends.tolist() == [
            sum(len(gram) <= order for gram in limits_of(refs, orders)) for order in range(1, orders + 1)
        ]


@examples(200)
@given(tables)
def test_the_closest_reference_is_the_shorter_of_two(images):
    table = ReferenceTable(lambda row: images[row], len(images), VOCAB_SIZE)
    for refs, closest in zip(images, table[np.arange(len(images))].closest, strict=True):
        for length in range(20):
            expected = min((abs(len(reference) - length), len(reference)) for reference in refs)[1]
            assert closest[min(length, len(closest) - 1)] == expected


def test_returned_arrays_are_unchanged_when_the_table_grows():
    images = [[[0, 1]], [[0, 1, 2, 0, 2, 1, 0, 0, 1, 1]], [[2]]]
    table = ReferenceTable(lambda row: images[row], 3, VOCAB_SIZE)
    first = table[np.array([0, 0])]
    before = [array.copy() for array in first]
    table[np.array([1, 2])]
    assert all(map(np.array_equal, first, before))


def references_of(row):
    return [[row % 3, 1, row % 2] * (1 + row % 5)]


def test_a_pickled_table_works_and_is_no_larger():
    table = ReferenceTable(references_of, 200, VOCAB_SIZE)
    table.prepare(np.arange(100))
    written = pickle.dumps(table)
    assert len(written) < 2 * table._used * _NGRAM_BYTES + 10_000
    assert len(written) < sum(value.nbytes for value in vars(table).values() if getattr(value, "base", 1) is None)
    loaded = pickle.loads(written)
    loaded.prepare(np.arange(100, 200))
    rows = np.array([3, 99, 100, 199])
    assert all(map(np.array_equal, table[rows], loaded[rows]))


def test_space_is_reserved_for_usual_images_and_grows_for_others():
    table = ReferenceTable(references_of, 200, VOCAB_SIZE)
    keys = table._keys
    table.prepare(np.arange(200))
    assert table._keys is keys  # growth would hold the arrays twice
    long = ReferenceTable(lambda row: [list(range(VOCAB_SIZE)) * 40 for _ in range(2)], 2, VOCAB_SIZE)
    rotated = ReferenceTable(lambda row: [[*range(row, VOCAB_SIZE), *range(row)] * 40 for _ in range(2)], 2, VOCAB_SIZE)
    for table in (long, rotated):
        both, second = table[np.array([0, 1])], table[np.array([1])]
        assert all(np.array_equal(rows[1:], row) for rows, row in zip(both, second, strict=True))


def test_dropped_rows_are_prepared_again(monkeypatch):
    images = [[[row % 3, 1, row % 2]] for row in range(20)]
    reads: list[int] = []

    def read(row):
        reads.append(row)
        return images[row]

    unlimited = ReferenceTable(images.__getitem__, 20, VOCAB_SIZE)
    monkeypatch.setattr("glimpse_env.metrics.references._MAX_BYTES", 200)  # of three images or so
    table = ReferenceTable(read, 20, VOCAB_SIZE)
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = rng.integers(20, size=8)
        for array, expected in zip(table[rows], unlimited[rows], strict=True):
            assert np.array_equal(array[:, : expected.shape[1]], expected)
    assert len(reads) > 60
    assert table._keys.size < 150


@pytest.mark.parametrize("refs", [[], [[]], ()], ids=repr)
def test_images_without_reference_words_are_named(refs):
    table = ReferenceTable(lambda row: refs if row == 2 else [[0]], 3, VOCAB_SIZE)
    table[np.array([0, 1])]
    with pytest.raises(ValueError, match="at least one reference with words for row 2") as caught:
        table[np.array([0, 2])]
    assert str(caught.value).endswith(f"got {refs!r}")


def test_ngrams_that_do_not_fit_are_refused():
    ReferenceTable(lambda row: [[0]], 1, 46_339, 4)
    with pytest.raises(ValueError, match=r"BLEU-4 over 46340 words does not fit 62 bits; use .* at most 46339 words"):
        ReferenceTable(lambda row: [[0]], 1, 46_340, 4)


def test_threads_that_share_a_table_read_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.integers(-1, 40, (3, rng.integers(3, 12))).tolist() for _ in range(400)]
    queries = [rng.integers(0, len(images), (100, 4)) for _ in range(4)]

    def read(table, batches):
        return [
            [
                keys[keys < table.SENTINEL].tolist() + limits[keys < table.SENTINEL].tolist()
                for keys, limits in zip(counts.keys, counts.limits, strict=True)
            ]
            for counts in (table[rows] for rows in batches)
        ]

    def shared():
        return ReferenceTable(lambda row: images[row], len(images), 40)

    expected = [read(shared(), batches) for batches in queries]
    monkeypatch.setattr(
        "glimpse_env.metrics.references._NGRAMS_PER_IMAGE", 1
    )  # so that the table grows while threads read it
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        table = shared()
        with ThreadPoolExecutor(len(queries)) as threads:
            assert [*threads.map(lambda batches: read(table, batches), queries)] == expected
    finally:
        sys.setswitchinterval(before)
