"""Folders that are whole, or the ones before; whenever a process ends."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from kd_prune import atomic_io

OLD, NEW = {"a": "old", "b": "old"}, {"a": "new", "b": "new"}


def fill(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def replaced(folder: Path) -> None:
    with atomic_io.folder(folder, replace=True) as scratch:
        fill(scratch, NEW)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "folder", OLD)
    return tmp_path / "folder"


def test_a_folder_is_replaced_and_nothing_else_is_left(folder):
    replaced(folder)
    assert read(folder) == NEW
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_there_stays_unless_it_is_to_be_replaced(folder):
    with atomic_io.folder(folder) as scratch:
        fill(scratch, NEW)
    assert read(folder) == OLD
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("operation", ["rename", "rmtree"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_kill_leaves_a_whole_folder(folder, monkeypatch, operation, count):
    """At every operation, deleting half-way done: under its name, or the old one under another."""

    class Killed(BaseException):
        pass

    done = []
    rename, rmtree = Path.rename, shutil.rmtree

    def kill(half_way):
        done.append(half_way)
        if len(done) == count:
            half_way()
        if len(done) >= count:  # nothing that a dead process was still to do happens
            raise Killed

    def killed_rename(self, target):
        if operation == "rename":
            kill(lambda: None)
        return rename(self, target)

    def killed_rmtree(path, **options):
        if operation == "rmtree":
            kill(lambda: [file.unlink() for file in sorted(Path(path).glob("*"))[:1]])
        if len(done) < count:
            rmtree(path, **options)

    monkeypatch.setattr(Path, "rename", killed_rename)
    monkeypatch.setattr(shutil, "rmtree", killed_rmtree)
    with suppress(Killed):
        replaced(folder)
    there = [read(place) for place in folder.parent.iterdir()]
    assert OLD in there or NEW in there
    if folder.exists():
        assert read(folder) in (OLD, NEW)


def test_a_new_folder_that_cannot_take_the_name_brings_the_old_one_back(folder, monkeypatch):
    rename = Path.rename

    def fail(self, target):
        if target == folder and read(self) == NEW:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"):
        replaced(folder)
    assert read(folder) == OLD
    assert list(folder.parent.iterdir()) == [folder]


def test_the_current_folder_can_be_replaced(folder, monkeypatch):
    monkeypatch.chdir(folder)
    replaced(Path())
    assert read(folder) == NEW
