"""Rows that are kept in a folder, and made by one process at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from filelock import FileLock

from kd_prune import atomic_io


def cached_rows(folder: Path, make: Callable[[], Dataset]) -> Dataset:
    """Return the rows saved in `folder`; the first process makes and saves them, others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            rows = make()
            with atomic_io.folder(folder) as scratch:
                rows.save_to_disk(str(scratch))
    return Dataset.load_from_disk(str(folder))
