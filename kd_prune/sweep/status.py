"""State of a run, recorded in ``status.json``, and the lock of a run folder."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd_prune.errors import ConfigError
from kd_prune.json_schema import SchemaError, read_json
from kd_prune.results import RESULT_FILE, STATUS_FILE, Status

LOCK_FILE = "run.lock"


RECORDS = (STATUS_FILE, RESULT_FILE, "last.ckpt")
"""Files of which a run folder has one at least."""
REPLACED = ("student", "milestones", "metrics.csv", "sparsity.csv", "curves.png")
"""Names of results, which a new run in the folder replaces."""


class RunLockedError(RuntimeError):
    """Another process holds the lock of the run folder."""


@contextmanager
def run_lock(folder: Path, about: Status, seen: Status | None = None) -> Iterator[None]:
    """Hold the lock of a run folder, and record the run's state.

    The state is ``running`` while the lock is held, then ``finished``; after an exception it is
    ``failed``, or the exception's own attribute `state` (``stopped``); after KeyboardInterrupt or
    SystemExit it is ``interrupted``. A killed process leaves ``running`` and a free lock. A command
    that fails without changing the result of a finished run leaves that run's status unchanged.

    Args:
        folder: The run folder; created if needed.
        about: Description of the run; its `state`, `reason` and times are set here.
        seen: The state by which the caller decided to run; None: any.

    Raises:
        RunLockedError: Another process holds the lock, or has run here since `seen`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire(timeout=1)  # `is_locked` takes the lock for a moment
    except Timeout as error:
        raise RunLockedError(
            f"{folder}: another process runs in this folder; wait for it, or choose another folder "
            "with hydra.run.dir=<folder>"
        ) from error
    before, result = read(folder), _result_content(folder)
    if seen is not None and before != seen:
        lock.release()
        raise RunLockedError(f"{folder}: another process has run this job meanwhile")
    about = replace(about, started=now(), host=socket.gethostname(), pid=os.getpid())
    with lock:
        lock.release()  # `with` has acquired the lock a second time
        write(folder, about, "running")
        try:
            yield
        except BaseException as error:
            unchanged = result is not None and _result_content(folder) == result
            if before and before.state == "finished" and unchanged:
                before.write(folder)
            elif isinstance(error, Exception):
                about = replace(about, refused=isinstance(error, ConfigError))
                write(folder, about, getattr(error, "state", "failed"), reason=reason(error))
            else:
                write(folder, about, "interrupted", reason=reason(error))
            raise
        write(folder, about, "finished")


def refuse_results_without_run(folder: Path) -> None:
    """Refuse a folder that no run made, with files of the names of results: a run replaces those.

    Raises:
        ConfigError: It is such a folder.
    """
    if any((folder / name).exists() for name in RECORDS):
        return
    if there := [name for name in REPLACED if (folder / name).exists()]:
        raise ConfigError(
            "hydra.run.dir",
            str(folder),
            f"holds {there[0]}, which no run made and this one would replace",
            "choose another folder",
        )


def write(folder: Path, about: Status, state: str, *, reason: str | None = None) -> None:
    """Record a state in ``status.json``, with the time unless the run is still running."""
    ended = None if state == "running" else now()
    replace(about, state=state, reason=reason, ended=ended).write(folder)


def read(folder: Path) -> Status | None:
    """Read ``status.json``; None where it is missing or cannot be read."""
    try:
        return Status.read(folder)
    except (OSError, SchemaError):
        return None


def is_running(folder: Path) -> bool:
    """Return whether a living process runs in this folder."""
    status = read(folder)
    return status is not None and status.state == "running" and is_locked(folder)


def is_locked(folder: Path) -> bool:
    """Return whether a living process holds the lock of a run folder; True if that is unclear."""
    lock = folder / LOCK_FILE
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a read-only disk: keep the recorded state
        return True


def reason(error: BaseException) -> str:
    """Describe an error in one line; Python's own errors with their type.

    >>> reason(OSError(28, "No space left on device", "result.json"))
    'the disk is full (result.json); free some space, then resume: ckpt_path=<run folder>, or \
in a sweep sweep.retry_failed=true'
    """
    message = " ".join(str(error).split())
    if disk_is_full(error):
        where = getattr(error, "filename", None)
        return (
            f"the disk is full{f' ({where})' if where else ''}; "
            "free some space, then resume: ckpt_path=<run folder>, or in a sweep "
            "sweep.retry_failed=true"
        )
    if isinstance(error, (ValueError, RuntimeError)) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def disk_is_full(error: BaseException) -> bool:
    """Return whether a write failed because the disk or the quota is full."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    # safetensors (Rust) and torch.save (C++) raise errors without a number.
    words = ("No space left on device", "PytorchStreamWriter failed", "(os error 27)")
    return any(word in str(error) for word in words)


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _result_content(folder: Path) -> dict[str, Any] | None:
    try:
        return read_json(folder / RESULT_FILE)
    except (OSError, SchemaError):
        return None
