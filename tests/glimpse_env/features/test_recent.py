"""Rows that are kept in memory: the right ones, the right values, in every thread its own."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpse_env.features.row_cache import RecentRows

ROWS, SHAPE = 12, (2, 3)
TABLE = np.arange(ROWS * 6, dtype=np.float16).reshape(ROWS, *SHAPE)


def recent(count):
    return RecentRows(ROWS, SHAPE, count * TABLE[0].nbytes + 1)


def read(array, places, rows):
    array[places] = TABLE[rows]


some = st.lists(st.integers(0, ROWS - 1), max_size=8).map(lambda rows: np.array(rows, np.int64))


@given(st.integers(0, ROWS + 3), st.lists(st.tuples(st.sampled_from(["find", "keep"]), some), max_size=30))
def test_what_was_not_used_for_longest_makes_room_and_what_was_just_used_never(count, asked):
    kept, last, reads = recent(count), {}, []
    count = min(count, ROWS)
    assert len(kept.array) == count

    def kept_now():
        return {*(kept._place >= 0).nonzero()[0].tolist()}

    def counted(array, places, rows):
        reads.extend(rows.tolist())
        read(array, places, rows)

    for moment, (what, rows) in enumerate(asked):
        here, wanted = kept_now(), {*rows.tolist()}
        if what == "keep":
            reads.clear()
            left = kept.keep(rows, counted)
            assert sorted([*reads, *left.tolist()]) == sorted(wanted - here)
            staying = {row for row in here if row in wanted or last[row] == moment - 1}
            assert len(reads) == min(len(wanted - here), count - len(staying))
            gone = here - kept_now()
            assert len(gone) == max(len(here) + len(reads) - count, 0)
            assert not gone & staying
            longer = [last[row] for row in here - gone - staying]
            assert not gone or not longer or max(last[row] for row in gone) <= min(longer)
            assert kept_now() == here - gone | {*reads}
        else:
            places = kept.find(rows)
            assert [*(places >= 0)] == [row in here for row in rows.tolist()]
            np.testing.assert_array_equal(kept.array[places[places >= 0]], TABLE[rows[places >= 0]])
        last |= dict.fromkeys(kept_now() & wanted, moment)


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
    for rows in ([3], [2, 3, 6], [2, 3, 6]):  # a row goes to the place of another, which then has a third
        assert not len(kept.keep(np.array(rows), read))
    assert kept.keep(np.array([6, 5]), read).tolist() == [5]
    places = kept.find(np.array([2, 3, 6]))
    assert np.array_equal(kept.array[places], TABLE[[2, 3, 6]])


def test_every_thread_has_its_own():
    kept, other = recent(3), []
    kept.keep(np.array([1, 2, 3]), read)
    thread = threading.Thread(target=lambda: other.extend(kept.find(np.array([1, 2, 3]))))
    thread.start()
    thread.join()
    assert other == [-1, -1, -1]
    assert (kept.find(np.array([1, 2, 3])) >= 0).all()
