"""A job as one of many: what is finished is skipped, what was interrupted goes on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kd_prune.sweep import status
from kd_prune.sweep.names import identity

log = logging.getLogger(__name__)

CarryOut = Callable[[str | None], Mapping[str, Any] | None]


def one_of_many(
    folder: Path,
    about: Mapping[str, Any],
    carry_out: CarryOut,
    *,
    retry_failed: bool = False,
) -> Mapping[str, Any] | None:
    """Carry out one job of a sweep, unless its result is there; a failure ends this job alone.

    Args:
        folder: The job's own folder, the same whenever the sweep is started.
        about: What the job is (see `status.at_work`); with its resolved `config`.
        carry_out: Does the work, going on from a checkpoint if given one; returns the result.
        retry_failed: Carry out again what failed before.

    Returns:
        The result; None where there is none, for the reason that is logged and recorded.
    """
    before = status.read(folder)
    try:
        if before.get("state") == "pruned":
            log.info("%s: pruned before: %s", folder, before.get("reason"))
            return None
        if before.get("state") != "failed":
            done = finished(folder, about.get("config"))
            if done is not None:
                log.info("%s: finished before", folder)
                if before.get("state") != "finished":  # killed just then
                    known = {key: before.get(key) for key in ("started", "host", "pid")}
                    status.write(folder, "finished", {**about, **known})
                return done
        elif not retry_failed:
            log.error(
                "%s: failed before: %s (sweep.retry_failed=true tries again)",
                folder,
                before.get("reason"),
            )
            return None
        with status.at_work(folder, about):
            checkpoint = folder / "last.ckpt"
            return carry_out(str(checkpoint) if checkpoint.is_file() else None)
    except status.AtWorkError as error:
        log.warning("%s", error)
        return None
    except Exception as error:  # whatever it is, the other jobs go on
        if getattr(error, "state", None) == "pruned":
            log.info("%s: pruned: %s", folder, status.reason(error))
            return None
        log.error("%s: failed: %s", folder, status.reason(error))
        log.debug("failed", exc_info=True)
        return None


def unrecorded(
    folder: Path, about: Mapping[str, Any], carry_out: Callable[[], Mapping[str, Any] | None]
) -> Mapping[str, Any] | None:
    """Carry out one job of a sweep that leaves a record only where it failed; the others go on."""
    try:
        (folder / status.FILE).unlink(missing_ok=True)
        return carry_out()
    except Exception as error:  # whatever it is, the other jobs go on
        folder.mkdir(parents=True, exist_ok=True)
        status.write(folder, "failed", about, reason=status.reason(error))
        log.error("%s: failed: %s", folder, status.reason(error))
        log.debug("failed", exc_info=True)
        return None


def finished(folder: Path, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The result in `folder`, if there is a whole one.

    Raises:
        ValueError: It is of another configuration.
    """
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text())
        there = identity(result["config"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: not whole (%s); the run is made again", path, status.reason(error))
        return None
    if config is not None and there != identity(config):
        raise ValueError(
            f"{path}: of another configuration; let hydra.sweep.subdir tell these jobs apart"
        )
    return dict(result)


def metric(result: Mapping[str, Any] | None, monitor: str) -> float:
    """The value a sweep looks at; NaN where there is no result."""
    return float(result["student"].get(monitor, math.nan)) if result else math.nan
