"""Files and folders that are whole, or the ones before."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a text file beside and rename it: no reader, and no kill, ever meets half of it.

    Raises:
        OSError: The disk is full, or the folder cannot be written to; what was there stays.
    """
    scratch = beside(path)
    try:
        scratch.write_text(text, encoding="utf-8", newline="")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill, which gets its name when it is full; nothing is left if it never is.

    One that it replaces keeps another name until it has: a failure brings that one back, and a kill
    in between leaves it, whole, as ``<name>.<32 digits>``.

    Args:
        path: Its name.
        replace: Whether it takes the place of one that is there; else the one that is there stays,
            which another process may have made meanwhile.

    Raises:
        OSError: As in `write`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch, before = beside(path), beside(path)
    scratch.mkdir()
    try:
        yield scratch
        if replace and path.is_dir():
            path.rename(before)
        try:
            scratch.rename(path)
        except OSError:
            if replace or not path.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if before.exists() and not path.exists():
            before.rename(path)
        shutil.rmtree(before, ignore_errors=True)


def beside(path: Path) -> Path:
    """A name that no other process takes, on this machine or on one that shares the disk."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")
