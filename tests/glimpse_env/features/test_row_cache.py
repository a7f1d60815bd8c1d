"""The row cache: which rows it evicts, their values, and one cache for each thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.features.row_cache import LRURows

ROWS, SHAPE = 12, (2, 3)
TABLE = np.arange(ROWS * 6, dtype=np.float16).reshape(ROWS, *SHAPE)


def make_cache(count):
    return LRURows(ROWS, SHAPE, count * TABLE[0].nbytes + 1)


def read(array, slots, rows):
    array[slots] = TABLE[rows]


some_rows = st.lists(st.integers(0, ROWS - 1), max_size=8).map(lambda rows: np.array(rows, np.int64))


@given(st.integers(0, ROWS + 3), st.lists(st.tuples(st.sampled_from(["find", "load"]), some_rows), max_size=30))
def test_the_least_recently_used_row_is_evicted_and_a_row_of_the_last_call_never(count, calls):
    cache, last_used, reads = make_cache(count), {}, []
    count = min(count, ROWS)
    assert len(cache.array) == count

    def cached_rows():
        return {*(cache._slot_of_row >= 0).nonzero()[0].tolist()}

    def counted(array, slots, rows):
        reads.extend(rows.tolist())
        read(array, slots, rows)

    for time, (method, rows) in enumerate(calls):
        before, requested = cached_rows(), {*rows.tolist()}
        if method == "load":
            reads.clear()
            rest = cache.load(rows, counted)
            assert sorted([*reads, *rest.tolist()]) == sorted(requested - before)
            staying = {row for row in before if row in requested or last_used[row] == time - 1}
            assert len(reads) == min(len(requested - before), count - len(staying))
            evicted = before - cached_rows()
            assert len(evicted) == max(len(before) + len(reads) - count, 0)
            assert not evicted & staying
            spared = [last_used[row] for row in before - evicted - staying]
            assert not evicted or not spared or max(last_used[row] for row in evicted) <= min(spared)
            assert cached_rows() == before - evicted | {*reads}
        else:
            slots = cache.find(rows)
            assert [*(slots >= 0)] == [row in before for row in rows.tolist()]
            np.testing.assert_array_equal(cache.array[slots[slots >= 0]], TABLE[rows[slots >= 0]])
        last_used |= dict.fromkeys(cached_rows() & requested, time)


def test_a_reader_that_fails_leaves_no_row_half_read():
    cache = make_cache(3)
    cache.load(np.array([1, 2, 3]), read)

    def fails(array, slots, rows):
        array[slots] = 0
        raise OSError("the disk is gone")

    cache.find(np.array([2]))
    with pytest.raises(OSError, match="the disk is gone"):
        cache.load(np.array([4, 5]), fails)
    assert [*(cache.find(np.arange(ROWS)) >= 0).nonzero()[0]] == [2]
    for rows in ([3], [2, 3, 6], [2, 3, 6]):  # a row takes the slot of another, which then takes a third
        assert not len(cache.load(np.array(rows), read))
    assert cache.load(np.array([6, 5]), read).tolist() == [5]
    slots = cache.find(np.array([2, 3, 6]))
    assert np.array_equal(cache.array[slots], TABLE[[2, 3, 6]])


def test_every_thread_has_its_own_rows():
    cache, slots = make_cache(3), []
    cache.load(np.array([1, 2, 3]), read)
    thread = threading.Thread(target=lambda: slots.extend(cache.find(np.array([1, 2, 3]))))
    thread.start()
    thread.join()
    assert slots == [-1, -1, -1]
    assert (cache.find(np.array([1, 2, 3])) >= 0).all()
