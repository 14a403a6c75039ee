"""Collecting: run folders on disk → runs, and what of them could not be read.

Reads while jobs write, so everything that is missing or half there is named and passed over.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_prune.sweep import status
from kd_prune.sweep.method import methods
from kd_prune.sweep.records import Collection, Point, Run

# Folders inside a run that hold no run.
INNER = {"student", "milestones", ".hydra", "lightning_logs", "wandb", "mlruns", "tensorboard"}


class BrokenError(ValueError):
    """A file is not what it should be."""


def collect(folders: Iterable[Path]) -> Collection:
    """Read every run below the folders.

    Raises:
        ValueError: A folder does not exist, or there is no run in any of them.
    """
    broken: list[tuple[Path, str]] = []
    folders = list(folders)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
    found = sorted({run for folder in folders for run in run_folders(folder)})
    if not found:
        named = ", ".join(map(str, folders))
        raise ValueError(f"{named}: no run in there (a run has a status.json or a result.json)")
    runs = [read_run(folder, broken) for folder in found]
    labels = methods(runs)
    runs = [replace(run, method=label) for run, label in zip(runs, labels, strict=True)]
    return Collection(runs=runs, broken=broken)


def run_folders(folder: Path) -> Iterator[Path]:
    """Every folder below that holds a run, itself included."""
    for path, inner, files in os.walk(folder.resolve()):
        is_run = status.FILE in files or "result.json" in files
        inner[:] = sorted(name for name in inner if not (is_run and name in INNER))
        if is_run:
            yield Path(path)


def read_run(folder: Path, broken: list[tuple[Path, str]]) -> Run:
    """One run; what cannot be read is added to `broken`."""

    def read(name: str, parse: Any) -> Any:
        path = folder / name
        try:
            return parse(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            broken.append((path, _why(error)))
            return None

    record: dict[str, Any] = read(status.FILE, _object) or {}
    result: dict[str, Any] | None = read("result.json", _object)
    config = record.get("config") or (result or {}).get("config")
    config = config if isinstance(config, dict) else {}
    task = config.get("task")
    task = task if isinstance(task, dict) else {}
    run = Run(
        folder=folder,
        state=str(record.get("state", "finished" if result else "failed")),
        reason=record.get("reason"),
        task=str(record.get("task") or (result or {}).get("task") or task.get("name") or "?"),
        seed=record.get("seed", (result or {}).get("seed")),
        monitor=str(record.get("monitor") or task.get("monitor") or ""),
        choices=record.get("choices") or {},
        config=config,
        ended=record.get("ended"),
        data=(result or {}).get("data"),
        curves=tuple(read("metrics.csv", _numbers) or ()),
    )
    if run.state == "running" and not status.is_held(folder / status.LOCK):
        run = replace(
            run, state="interrupted", reason="killed; the same command again goes on with it"
        )
    if result is not None:
        try:
            run = _with_result(run, result)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            broken.append((folder / "result.json", _why(error)))
            result = None
    if run.state == "finished":
        if result is None:
            return replace(run, state="failed", reason="its result.json is missing or not whole")
        tensors = read("sparsity.csv", _tensors)
        return replace(run, tensors=tuple(tensors or ()))
    return replace(run, points=())


def _with_result(run: Run, result: Mapping[str, Any]) -> Run:
    last = _point(result, run.target, milestone=False)
    way = [_point(m, float(m["target"]), milestone=True) for m in result.get("milestones", [])]
    monitor = run.monitor if run.monitor in last.student else next(iter(last.student))
    return replace(
        run,
        monitor=monitor,
        teacher=_metrics({k: v for k, v in result["teacher"].items() if k != "path"}),
        points=(*way, last),
        bytes=int(result["bytes"]),
        seconds={str(stage): float(value) for stage, value in result["seconds"].items()},
    )


def _point(found: Mapping[str, Any], target: float | None, *, milestone: bool) -> Point:
    return Point(
        target=target,
        milestone=milestone,
        student=_metrics(found["student"]),
        sparsity=_finite("sparsity", found["sparsity"]),
        model_sparsity=_finite("model_sparsity", found["model_sparsity"]),
        parameters=int(found["parameters"]),
        nonzero=int(found["nonzero"]),
    )


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    if not values:
        raise BrokenError("it has no metric")
    return {str(name): _finite(str(name), value) for name, value in values.items()}


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BrokenError(f"{name} is {value!r}, no finite number")
    return float(value)


def _object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise BrokenError("it holds no JSON object")
    return value


def _numbers(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [{k: float(v) for k, v in row.items() if k and v} for row in rows]


def _tensors(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {"name": row["name"], "zeros": int(row["zeros"]), "size": int(row["size"])}
            for row in csv.DictReader(file)
            if row["in_scope"] == "True"
        ]


def _why(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, UnicodeDecodeError):
        return "it is no text"
    if isinstance(error, json.JSONDecodeError):
        return f"half-written or no JSON ({error})"
    return status.reason(error)
