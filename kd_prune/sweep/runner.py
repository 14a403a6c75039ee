"""One job of a sweep: skip it if it is finished, resume it if it was interrupted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from kd_prune.errors import ConfigError
from kd_prune.json_schema import SchemaError
from kd_prune.results import RESULT_FILE, STATUS_FILE, ModelResult, RunResult, Status
from kd_prune.sweep import status
from kd_prune.sweep.run_id import config_hash

log = logging.getLogger(__name__)

RunJob = Callable[[str | None], RunResult | None]
"""Run a job, from a checkpoint if its path is given."""
T = TypeVar("T")


def run_sweep_job(
    folder: Path, about: Status, run_job: RunJob, *, retry_failed: bool = False
) -> RunResult | None:
    """Run one job of a sweep, unless its result exists; a failure ends this job only.

    Args:
        folder: Run folder of the job, the same each time the sweep is started.
        about: Description of the job, with its resolved configuration.
        run_job: Runs the job; gets the path of a checkpoint to resume from, or None.
        retry_failed: Run a job again that failed before.

    Returns:
        The result; None where there is none, for the reason that is logged and recorded.

    Raises:
        ConfigError: The folder is of another job.
    """
    before = status.read(folder)
    state = before.state if before else None
    result = None if state == "failed" else readable_result(folder)
    refuse_other_configuration(folder / RESULT_FILE, result, about)
    if (state in ("failed", "stopped") and not retry_failed) or status.is_running(folder):
        refuse_other_configuration(folder / STATUS_FILE, before, about)
    checkpoint = folder / "last.ckpt"
    try:
        if before and state == "stopped":
            log.info("%s: stopped before: %s", folder, before.reason)
            return None
        if before and state == "failed" and not retry_failed:
            log.error(
                "%s: failed before: %s (sweep.retry_failed=true runs it again)",
                folder,
                before.reason,
            )
            return None
        # Killed while it ended: what follows the result, such as min_retained, is done again.
        unfinished = state in ("running", "interrupted") and checkpoint.is_file()
        if result and not unfinished:
            log.info("%s: finished before", folder)
            if state != "finished":  # killed between writing the result and the status
                by = before or about
                about = replace(about, started=by.started, host=by.host, pid=by.pid)
                status.write(folder, about, "finished")
            return result
        with status.run_lock(folder, about, seen=before):
            return run_job(str(checkpoint) if checkpoint.is_file() else None)
    except status.RunLockedError as error:
        log.warning("%s", error)
        return None
    except Exception as error:  # of any kind: the other jobs continue
        if getattr(error, "state", None) == "stopped":
            log.info("%s: stopped: %s", folder, status.reason(error))
            return None
        log.error("%s: failed: %s", folder, status.reason(error))
        log.debug("failed", exc_info=True)
        return None


def run_eval_job(folder: Path, about: Status, evaluate: Callable[[], T | None]) -> T | None:
    """Run one evaluation of a sweep; it leaves a status only if it fails."""
    try:
        (folder / STATUS_FILE).unlink(missing_ok=True)
        return evaluate()
    except Exception as error:  # of any kind: the other jobs continue
        folder.mkdir(parents=True, exist_ok=True)
        status.write(folder, about, "failed", reason=status.reason(error))
        log.error("%s: failed: %s", folder, status.reason(error))
        log.debug("failed", exc_info=True)
        return None


def readable_result(folder: Path) -> RunResult | None:
    """Read the result of a run folder; None where there is none that can be read."""
    path = folder / RESULT_FILE
    try:
        return RunResult.read(folder)
    except FileNotFoundError:
        return None
    except (OSError, SchemaError) as error:
        log.warning("%s: cannot be read (%s); the job runs again", path, status.reason(error))
        return None


def refuse_other_configuration(path: Path, found: RunResult | Status | None, about: Status) -> None:
    """Refuse a job whose folder is that of another one: it would be taken for finished or failed.

    Raises:
        ConfigError: The file at `path` is of another configuration.
    """
    if not (found and found.config and about.config):
        return
    if config_hash(found.config) != config_hash(about.config):
        raise ConfigError(
            "hydra.sweep.subdir",
            expected=f"{path} is of another configuration",
            hint="choose a subdir that differs between these jobs",
        )


def sweep_metric(result: RunResult | ModelResult | None, monitor: str) -> float:
    """Return the value that a sweep compares; NaN where there is no result."""
    model = result.student if isinstance(result, RunResult) else result
    return float(model.metrics.get(monitor, math.nan)) if model else math.nan
