"""Atomic writes: readers see the complete new file or folder, or the previous one."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so that no file is half-written.

    Raises:
        OSError: The disk is full, or the folder cannot be written to; the previous file stays.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `write` does.

    Raises:
        OSError: As in `write`.
    """
    scratch = _temporary_path(path)
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, renamed to `path` at the end of the block; deleted after an error.

    A folder that is replaced has a temporary name during the exchange: an error restores its name,
    and a kill leaves it complete as ``<name>.<32 hexadecimal digits>``.

    Args:
        path: The new folder.
        replace: Whether to replace an existing folder. If not, an existing folder, which another
            process may have made meanwhile, stays.

    Raises:
        OSError: As in `write`.
    """
    path = path.absolute()  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch, before = _temporary_path(path), _temporary_path(path)
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


def _temporary_path(path: Path) -> Path:
    """Return a unique path in the same folder, also if several machines share the disk."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")
