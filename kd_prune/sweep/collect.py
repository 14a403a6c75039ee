"""Read run folders from disk; name every file that cannot be read.

Jobs may be writing meanwhile, so missing and half-written files are expected.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from kd_prune.errors import UNSET, ConfigError
from kd_prune.json_schema import SchemaError, read_json
from kd_prune.results import (
    RESULT_FILE,
    STATES,
    STATUS_FILE,
    RunResult,
    Status,
)
from kd_prune.sweep import status as run_status
from kd_prune.sweep.labels import method_labels
from kd_prune.sweep.schema import Collection, Run

INNER_FOLDERS = {
    "student",
    "milestones",
    ".hydra",
    "lightning_logs",
    "wandb",
    "mlruns",
    "tensorboard",
}
"""Folders inside a run that contain no runs."""
OLD_SCHEMA = "written by an older version of kd_prune (it has no 'stages'); run the job again"
T = TypeVar("T")


def collect(folders: Iterable[Path]) -> Collection:
    """Read every run below the folders.

    Raises:
        ConfigError: A folder does not exist, or none of them contains a run.
    """
    folders = list(folders)
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(str(folder), UNSET, "no such folder")
    found = sorted({run for folder in folders for run in run_folders(folder)})
    if not found:
        named = ", ".join(map(str, folders))
        raise ConfigError(
            named, UNSET, "contains no run", f"a run has a {STATUS_FILE} or a {RESULT_FILE}"
        )
    broken: list[tuple[Path, str]] = []
    runs = [read_run(folder, broken) for folder in found]
    labels = method_labels(runs)
    runs = [replace(run, method=label) for run, label in zip(runs, labels, strict=True)]
    return Collection(runs=runs, broken=broken)


def run_folders(folder: Path) -> Iterator[Path]:
    """Find every run folder below a folder, itself included."""
    for path, inner, files in os.walk(folder.resolve()):
        is_run = STATUS_FILE in files or RESULT_FILE in files
        inner[:] = sorted(name for name in inner if not (is_run and name in INNER_FOLDERS))
        if is_run:
            yield Path(path)


def read_run(folder: Path, broken: list[tuple[Path, str]]) -> Run:
    """Read one run; files that cannot be read are added to `broken`."""

    def read(name: str, parse: Callable[[Path], T]) -> T | None:
        path = folder / name
        try:
            return parse(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error) as error:
            broken.append((path, _describe(error)))
            return None

    status = read(STATUS_FILE, _read_status)
    if status and status.state == "running" and not run_status.is_locked(folder):
        status = read(STATUS_FILE, _read_status)  # it may have ended since the first look
    result = read(RESULT_FILE, _read_result)
    state = status.state if status else "finished" if result else "failed"
    why = status.reason if status else None
    if state == "running" and not run_status.is_locked(folder):
        state, why = "interrupted", "killed; run the same command again to resume"
    if state == "finished" and result is None:
        state, why = "failed", f"its {RESULT_FILE} is missing or cannot be read"
    finished = state == "finished"
    return Run(
        folder=folder,
        state=state,
        reason=why,
        status=status,
        result=result if finished else None,
        curves=tuple(read("metrics.csv", _read_curves) or ()),
        tensors=tuple((read("sparsity.csv", _read_tensors) if finished else None) or ()),
    )


def _read_status(path: Path) -> Status | None:
    status = Status.read(path.parent)
    if status and status.state not in STATES:
        raise SchemaError(f"its state is {status.state!r}, none of {', '.join(STATES)}")
    return status


def _read_result(path: Path) -> RunResult:
    content = read_json(path)
    if "student" in content and "stages" not in content:
        raise SchemaError(OLD_SCHEMA)
    return RunResult.from_json(content)


def _read_curves(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        found = [{k: float(v) for k, v in row.items() if k and v} for row in rows]
    return [row for row in found if math.isfinite(row.get("step", 0.0))]


def _read_tensors(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {"name": row["name"], "zeros": int(row["zeros"]), "size": int(row["size"])}
            for row in csv.DictReader(file)
            if row["in_scope"] == "True"
        ]


def _describe(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, UnicodeDecodeError):
        return "it is no text"
    return run_status.reason(error)
