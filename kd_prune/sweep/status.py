"""Status: what becomes of a run, in a file beside its results."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd_prune import whole

FILE = "status.json"
RESULT = "result.json"
LOCK = "run.lock"


class AtWorkError(RuntimeError):
    """Another process is at work in the run folder."""


@contextmanager
def at_work(folder: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Hold a run folder, and record how the run goes: ``running`` while it does.

    At its end the state is ``finished``, after an exception ``failed`` (or its own `state`), after
    any other end that Python hears of ``interrupted``; a process that was killed leaves
    ``running``, and a lock that is free. A command that ends before it touches the results of a
    finished run leaves that run's status beside them.

    Args:
        folder: The run folder.
        about: What the run is: plain data, written along.

    Raises:
        AtWorkError: Another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=1)  # who only looks whether it is held lets go at once
    except Timeout as error:
        raise AtWorkError(
            f"{folder}: another process is at work in this run folder; wait for it, or take "
            "another, hydra.run.dir=<folder>"
        ) from error
    before, result = read(folder), _result(folder)
    known = {**about, "started": now(), "host": socket.gethostname(), "pid": os.getpid()}
    with lock:
        lock.release()  # `with` took it once more
        write(folder, "running", known)
        try:
            yield
        except BaseException as error:
            if before.get("state") == "finished" and result and _result(folder) == result:
                _write(folder, before)
            elif isinstance(error, Exception):
                write(folder, getattr(error, "state", "failed"), known, reason=reason(error))
            else:
                write(folder, "interrupted", known, reason=reason(error))
            raise
        write(folder, "finished", known)


def write(folder: Path, state: str, about: Mapping[str, Any], *, reason: str | None = None) -> None:
    """Write ``status.json``, whole or not at all."""
    ended = None if state == "running" else now()
    _write(folder, {"state": state, "reason": reason, **about, "ended": ended})


def _write(folder: Path, status: Mapping[str, Any]) -> None:
    whole.write(folder / FILE, json.dumps(status, indent=2, default=str) + "\n")


def _result(folder: Path) -> Any:
    """What ``result.json`` says; None where there is none that can be read."""
    try:
        return json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return None


def read(folder: Path) -> dict[str, Any]:
    """What ``status.json`` says; empty where there is none that can be read."""
    try:
        status = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def is_at_work(folder: Path) -> bool:
    """Whether a living process is at work in a run folder."""
    return read(folder).get("state") == "running" and is_held(folder / LOCK)


def is_held(lock: Path) -> bool:
    """Whether a living process holds the lock; a dead one holds none. In doubt it does."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it cannot be tried here, so what the run said of itself stands
        return True


def reason(error: BaseException) -> str:
    """An error in one line; those that Python itself raises with their type.

    >>> reason(OSError(28, "No space left on device", "result.json"))
    'the disk is full (result.json); free some space, then start again to go on'
    """
    message = " ".join(str(error).split())
    if disk_is_full(error):
        where = getattr(error, "filename", None)
        return (
            f"the disk is full{f' ({where})' if where else ''}; "
            "free some space, then start again to go on"
        )
    if isinstance(error, (ValueError, RuntimeError)) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def disk_is_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of space, whichever library says so."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    # Rust's and C++'s own words: safetensors, torch.save.
    words = ("No space left on device", "PytorchStreamWriter failed", "(os error 27)")
    return any(word in str(error) for word in words)


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
