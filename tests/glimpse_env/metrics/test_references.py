"""A table of references holds their n-grams as numbers in ascending order; how BLEU uses it, test_bleu.py says."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glimpse_env.metrics import references as reference_module
from glimpse_env.metrics.ngram_table import ReferenceTable

VOCAB_SIZE = 3
references = st.lists(st.lists(st.integers(-1, VOCAB_SIZE - 1), max_size=9), min_size=1, max_size=4).filter(any)
tables = st.lists(references, min_size=1, max_size=4)


def limits_of(refs, orders):
    """How often a reference has each n-gram of words that can be said, at most, from the definition."""
    limits: Counter[tuple[int, ...]] = Counter()
    for reference in refs:
        for order in range(1, orders + 1):
            grams = [tuple(reference[i : i + order]) for i in range(len(reference) - order + 1)]
            limits |= Counter(gram for gram in grams if min(gram) >= 0)
    return limits


def read_grams(keys, limits):
    """The n-grams of a row and their limits: the digits in base V + 1 are the words, one higher."""
    grams = []
    for key in keys[keys < ReferenceTable.LAST].tolist():
        gram = []
        while key:
            key, digit = divmod(key, VOCAB_SIZE + 1)
            gram.insert(0, digit - 1)
        grams.append(tuple(gram))
    return dict(zip(grams, limits.tolist(), strict=False))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(tables, st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_n_gram_stands_once_with_its_limit_in_ascending_order(images, orders, shuffler):
    table = ReferenceTable(lambda row: images[row], len(images), VOCAB_SIZE, orders)
    for row in shuffler.sample(range(len(images)), len(images)):
        table[np.array([row])]  # prepared one by one, so that the arrays grow under those before
    prepared = table[np.arange(len(images))]
    for refs, keys, limits, ends in zip(images, prepared.keys, prepared.limits, prepared.ends, strict=True):
        known = int((keys < table.LAST).sum())
        assert np.all(np.diff(keys[: known + 1]) > 0)
        assert np.all(keys[known:] == table.LAST)  # at least one: what is searched is always below the last
        assert len(keys) > known
        assert read_grams(keys, limits) == limits_of(refs, orders)
        assert ends.tolist() == [
            sum(len(gram) <= order for gram in limits_of(refs, orders)) for order in range(1, orders + 1)
        ]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables)
def test_the_closest_reference_is_the_shorter_of_two(images):
    table = ReferenceTable(lambda row: images[row], len(images), VOCAB_SIZE)
    for refs, closest in zip(images, table[np.arange(len(images))].closest, strict=True):
        for length in range(20):
            expected = min((abs(len(reference) - length), len(reference)) for reference in refs)[1]
            assert closest[min(length, len(closest) - 1)] == expected


def test_what_was_handed_out_stays_when_the_table_grows():
    images = [[[0, 1]], [[0, 1, 2, 0, 2, 1, 0, 0, 1, 1]], [[2]]]
    table = ReferenceTable(lambda row: images[row], 3, VOCAB_SIZE)
    first = table[np.array([0, 0])]
    before = [part.copy() for part in first]
    table[np.array([1, 2])]
    assert all(np.array_equal(part, was) for part, was in zip(first, before, strict=True))


def references_of(row):
    return [[row % 3, 1, row % 2] * (1 + row % 5)]


def test_a_pickled_table_goes_on_and_is_no_larger():
    table = ReferenceTable(references_of, 200, VOCAB_SIZE)
    table.prepare(np.arange(100))
    written = pickle.dumps(table)
    assert len(written) < 2 * table._used * reference_module.NGRAM_BYTES + 10_000
    assert len(written) < sum(value.nbytes for value in vars(table).values() if getattr(value, "base", 1) is None)
    other = pickle.loads(written)
    other.prepare(np.arange(100, 200))
    rows = np.array([3, 99, 100, 199])
    assert all(np.array_equal(one, part) for one, part in zip(table[rows], other[rows], strict=True))


def test_room_is_set_aside_for_usual_images_and_found_for_others():
    table = ReferenceTable(references_of, 200, VOCAB_SIZE)
    keys = table._keys
    table.prepare(np.arange(200))
    assert table._keys is keys  # while they grow, arrays are held twice
    long = ReferenceTable(lambda row: [list(range(VOCAB_SIZE)) * 40 for _ in range(2)], 2, VOCAB_SIZE)
    other = ReferenceTable(lambda row: [[*range(row, VOCAB_SIZE), *range(row)] * 40 for _ in range(2)], 2, VOCAB_SIZE)
    for each in (long, other):
        both, alone = each[np.array([0, 1])], each[np.array([1])]
        assert all(np.array_equal(part[1:], one) for part, one in zip(both, alone, strict=True))


def test_what_was_forgotten_is_prepared_again(monkeypatch):
    images = [[[row % 3, 1, row % 2]] for row in range(20)]
    asked: list[int] = []

    def told(row):
        asked.append(row)
        return images[row]

    whole = ReferenceTable(images.__getitem__, 20, VOCAB_SIZE)
    monkeypatch.setattr(reference_module, "KEPT_BYTES", 200)  # of three images or so
    table = ReferenceTable(told, 20, VOCAB_SIZE)
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = rng.integers(20, size=8)
        for part, expected in zip(table[rows], whole[rows], strict=True):
            assert np.array_equal(part[:, : expected.shape[1]], expected)
    assert len(asked) > 60
    assert table._keys.size < 150


@pytest.mark.parametrize("refs", [[], [[]], ()], ids=repr)
def test_images_without_a_word_to_compare_with_are_named(refs):
    table = ReferenceTable(lambda row: refs if row == 2 else [[0]], 3, VOCAB_SIZE)
    table[np.array([0, 1])]
    with pytest.raises(ValueError, match="at least one reference with words for row 2") as caught:
        table[np.array([0, 2])]
    assert str(caught.value).endswith(f"got {refs!r}")


def test_n_grams_that_do_not_fit_are_refused():
    ReferenceTable(lambda row: [[0]], 1, 46_339, 4)
    with pytest.raises(ValueError, match=r"BLEU-4 over 46340 words does not fit 62 bits; use .* at most 46339 words"):
        ReferenceTable(lambda row: [[0]], 1, 46_340, 4)


def test_threads_that_share_a_table_read_what_one_alone_does(monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.integers(-1, 40, (3, rng.integers(3, 12))).tolist() for _ in range(400)]
    asked = [rng.integers(0, len(images), (100, 4)) for _ in range(4)]

    def read(table, batches):
        return [
            [
                keys[keys < table.LAST].tolist() + limits[keys < table.LAST].tolist()
                for keys, limits in zip(some.keys, some.limits, strict=True)
            ]
            for some in (table[rows] for rows in batches)
        ]

    def shared():
        return ReferenceTable(lambda row: images[row], len(images), 40)

    alone = [read(shared(), batches) for batches in asked]
    monkeypatch.setattr(reference_module, "USUAL", 1)  # so that it grows while it is read
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        table = shared()
        with ThreadPoolExecutor(len(asked)) as threads:
            assert [*threads.map(lambda batches: read(table, batches), asked)] == alone
    finally:
        sys.setswitchinterval(before)
