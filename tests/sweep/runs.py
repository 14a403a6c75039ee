"""Run folders as a run writes them, with figures chosen by a test."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from kd_prune.sweep import Collection, Summary, collect, summarize_runs

SIZE = 1000


def config_of(**changes: Any) -> dict[str, Any]:
    """A resolved configuration, cut down; `changes` by key with __ for dots."""
    config: dict[str, Any] = {
        "seed": 1,
        "task": {"name": "mrpc", "monitor": "accuracy"},
        "sparsity": {"final": 0.9, "criterion": "magnitude"},
        "distillation": {"terms": {"soft_targets": {"weight": 1.0}}},
        "optimizer": {"lr": 1e-3},
        "cache_dir": "somewhere",
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config


def student_of(sparsity: float, **metrics: float) -> dict[str, Any]:
    zeros = round(sparsity * SIZE)
    return {
        "metrics": metrics,
        "sparsity": zeros / SIZE,
        "model_sparsity": zeros / (2 * SIZE),
        "parameters": 2 * SIZE,
        "nonzero": 2 * SIZE - zeros,
        "bytes": 8000,
    }


def write_run(
    folder: Path,
    *,
    state: str = "finished",
    reason: str | None = None,
    accuracy: float = 0.8,
    teacher: float = 0.9,
    milestones: dict[float, float] | None = None,
    choices: dict[str, str] | None = None,
    steps: int = 10,
    tensors: int = 3,
    seconds: float = 60.0,
    ended: str = "2026-01-01T00:00:00+00:00",
    stages: dict[str, Any] | None = None,
    refused: bool = False,
    **changes: Any,
) -> Path:
    """One run folder.

    Args:
        folder: Where; made.
        state: As in ``status.json``; results only where it is `finished`.
        reason: Why it is not finished.
        accuracy: The student's.
        teacher: The teacher's.
        milestones: Sparsity → accuracy of the students saved at milestones.
        choices: Hydra's group choices.
        steps: Rows of ``metrics.csv``.
        tensors: Rows of ``sparsity.csv``.
        seconds: Of the student's fit.
        ended: When it ended.
        stages: Further stages between teacher and student, as in ``result.json``.
        refused: Whether a setting was refused; nothing was trained.
        changes: To the configuration (see `config_of`).
    """
    folder.mkdir(parents=True)
    config = config_of(**changes)
    final = config["sparsity"]["final"] or 0.0
    status = {
        "state": state,
        "reason": reason,
        "task": config["task"]["name"],
        "seed": config["seed"],
        "monitor": config["task"]["monitor"],
        "choices": {"distillation": "sparsebert", "sparsity": "sparsebert"} | (choices or {}),
        "overrides": [],
        "config": config,
        "started": "2026-01-01T00:00:00+00:00",
        "ended": None if state == "running" else ended,
        "host": "host",
        "pid": 1,
        "refused": refused,
    }
    (folder / "status.json").write_text(json.dumps(status))
    steps = 0 if refused else steps
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "train/loss", "sparsity/counted", "val/accuracy"])
        for step in range(1, steps + 1):
            value = accuracy * step / steps if step % 5 == 0 else ""
            writer.writerow([step, 1 / step, final * step / steps, value])
    if state != "finished":
        return folder
    of_task = {"task": config["task"]["name"], "monitor": config["task"]["monitor"]}
    result = {
        **of_task,
        "seed": config["seed"],
        "data": "",
        "stages": {
            "teacher": {
                **student_of(0.0, accuracy=teacher),
                **of_task,
                "seconds": 2.0,
                "path": "cache/teachers/1",
            },
            **(stages or {}),
            "student": {**student_of(final, accuracy=accuracy), **of_task, "seconds": seconds},
        },
        "milestones": [
            {"target": target, "step": 5, "path": f"milestones/{target}"}
            | student_of(target, accuracy=value)
            for target, value in (milestones or {}).items()
        ],
        "seconds": {"data": 1.0, "evaluation": 1.0},
        "versions": {},
        "config": config,
    }
    (folder / "result.json").write_text(json.dumps(result))
    with (folder / "sparsity.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "shape", "in_scope", "size", "zeros", "sparsity"])
        for layer in range(tensors):
            name = f"bert.encoder.layer.{layer}.output.dense.weight"
            writer.writerow([name, "10x100", True, SIZE, round(final * SIZE), f"{final:.6f}"])
        writer.writerow(["classifier.bias", "2", False, 2, 0, "0.000000"])
    return folder


def collected(folder: Path) -> tuple[Collection, Summary]:
    """All runs below a folder, and their statistics."""
    collection = collect([folder])
    return collection, summarize_runs(collection.runs)
