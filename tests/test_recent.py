"""Rows that are kept in memory: the right ones, the right values, in every thread its own."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.recent import RecentRows

ROWS, SHAPE = 12, (2, 3)
TABLE = np.arange(ROWS * 6, dtype=np.float16).reshape(ROWS, *SHAPE)


def recent(count):
    return RecentRows(ROWS, SHAPE, count * TABLE[0].nbytes + 1)


def read(array, places, rows):
    array[places] = TABLE[rows]


some = st.lists(st.integers(0, ROWS - 1), max_size=8).map(lambda rows: np.array(rows, np.int64))


@given(st.integers(0, ROWS + 3), st.lists(st.tuples(st.sampled_from(["find", "keep"]), some), max_size=30))
def test_what_was_not_used_for_longest_makes_room(count, asked):
    kept, last, reads = recent(count), {}, []
    count = min(count, ROWS)
    assert len(kept.array) == count

    def counted(array, places, rows):
        reads.extend(rows.tolist())
        read(array, places, rows)

    for moment, (what, rows) in enumerate(asked):
        found = kept.find(np.arange(ROWS)) >= 0
        kept._used[:-1] = [last.get(row, -1) for row in kept._row]  # to look at all is no use of any
        here = {*found.nonzero()[0].tolist()}
        if what == "keep":
            missing = {*rows.tolist()} - here
            reads.clear()
            left = kept.keep(rows, counted)
            assert sorted([*reads, *left.tolist()]) == sorted(missing)
            assert len(reads) == min(len(missing), count)
            kept_now = {*(kept._place >= 0).nonzero()[0].tolist()}
            gone = here - kept_now
            used = {row: moment if row in rows else last[row] for row in here}
            stay = [used[row] for row in here - gone]
            assert len(gone) == max(len(here) + len(reads) - count, 0)
            assert not gone or not stay or max(used[row] for row in gone) <= min(stay)
            last |= dict.fromkeys([*reads, *(here & {*rows.tolist()})], moment)
        else:
            places = kept.find(rows)
            assert [*(places >= 0)] == [row in here for row in rows.tolist()]
            np.testing.assert_array_equal(kept.array[places[places >= 0]], TABLE[rows[places >= 0]])
            last |= dict.fromkeys(here & {*rows.tolist()}, moment)


def test_a_reader_that_fails_leaves_no_row_half_read():
    kept = recent(3)
    kept.keep(np.array([1, 2, 3]), read)

    def fails(array, places, rows):
        array[places] = 0
        raise OSError("the disk is gone")

    kept.find(np.array([2]))
    with pytest.raises(OSError, match="the disk is gone"):
        kept.keep(np.array([4, 5]), fails)
    assert [*(kept.find(np.arange(ROWS)) >= 0).nonzero()[0]] == [2]
    kept.keep(np.array([5, 4, 2]), read)
    places = kept.find(np.array([2, 4, 5]))
    assert np.array_equal(kept.array[places], TABLE[[2, 4, 5]])


def test_every_thread_has_its_own():
    kept, other = recent(3), []
    kept.keep(np.array([1, 2, 3]), read)
    thread = threading.Thread(target=lambda: other.extend(kept.find(np.array([1, 2, 3]))))
    thread.start()
    thread.join()
    assert other == [-1, -1, -1]
    assert (kept.find(np.array([1, 2, 3])) >= 0).all()
