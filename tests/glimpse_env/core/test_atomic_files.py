"""Atomic writes leave a complete file, or the old one."""

from __future__ import annotations

import pytest

from glimpse_env.core.atomic_files import atomic_path


def test_the_new_file_takes_the_old_ones_place(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with atomic_path(path) as partial:
        assert partial.name == path.name  # writers that go by the suffix see the right one
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    with atomic_path(path) as partial:
        partial.write_text("here")
    assert path.read_text() == "here"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", ["old", None])
def test_after_an_exception_all_is_as_it_was(tmp_path, error, before):
    path = tmp_path / "figures.json"
    if before is not None:
        path.write_text(before)

    def write_half():
        with atomic_path(path) as partial:
            partial.write_text("ha")
            raise error

    with pytest.raises(error):
        write_half()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
