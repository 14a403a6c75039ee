"""What a finished run leaves for people to read: result.json, curves.png and a table."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from kd_prune import whole
from kd_prune.hf import models
from kd_prune.pruning import SparsityReport


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    packages = ("kd_prune", "torch", "lightning", "transformers", "datasets", "torchmetrics")
    found = {name: version(name) for name in packages}
    found["torch"] = str(torch.__version__)  # with its build; a wheel's metadata may leave it out
    return {"python": platform.python_version(), **found}


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file that is whole or the one before."""
    whole.write(path, json.dumps(values, indent=2, default=str) + "\n")


def draw_curves(
    rows: Sequence[Mapping[str, float]],
    path: Path,
    *,
    monitor: str,
    teacher: float,
    start: float | None = None,
    milestones: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Draw sparsity, each loss term and the validation metric over optimizer steps.

    The metric's axis spans 0.05 at least, so that noise is not made large, and ends at 1.

    Args:
        rows: `History.rows`.
        path: PNG file.
        monitor: The validation metric to show.
        teacher: The teacher's value of it.
        start: Sparsity as counted before the first step; None: not known.
        milestones: The students on the way, as in ``result.json``.
    """
    figure = Figure(figsize=(7, 8), layout="constrained")
    sparsity, losses, metric = figure.subplots(3, 1, sharex=True)
    terms = sorted({name for row in rows for name in row if name.startswith("train/")})
    begin = [] if start is None else [{"step": 0, "sparsity/counted": start}]
    for name, style in (("sparsity/counted", "-"), ("sparsity/target", "--")):
        curve = series([*begin, *rows], name)
        sparsity.plot(*curve, style, label=name.split("/")[1], drawstyle="steps-post")
    for name in terms:
        width = 2.0 if name == "train/loss" else 1.0
        losses.plot(*series(rows, name), label=name.split("/")[1], linewidth=width)
    edge = {"clip_on": False, "zorder": 3}  # what lies on the axis's end, at 1, is seen whole
    curve = series(rows, f"val/{monitor}")
    metric.plot(*curve, marker="o", markersize=3, label="student", **edge)
    metric.axhline(teacher, color="gray", linestyle="--", label="teacher", **edge)
    metric.spines["top"].set_visible(False)
    if milestones:
        steps = [milestone["step"] for milestone in milestones]
        values = [milestone["student"][monitor] for milestone in milestones]
        metric.plot(
            steps, values, "D", markersize=7, fillstyle="none", label="milestones, saved", **edge
        )
    sparsity.set(ylabel="sparsity in scope", ylim=(0, 1))
    losses.set(ylabel="loss (terms unweighted)", yscale="log")
    metric.set(ylabel=f"validation {monitor}", xlabel="optimizer steps")
    metric.set_ylim(metric_limits(*metric.get_ylim()))
    sparsity.legend(loc="lower right")
    metric.legend(loc="lower right")
    losses.legend(fontsize="small", ncols=2)
    for axes in (sparsity, losses, metric):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def metric_limits(low: float, high: float) -> tuple[float, float]:
    """Ends of a metric's axis: 0.05 apart at least, and none above 1, which no metric exceeds.

    >>> metric_limits(0.5, 0.9)
    (0.5, 0.9)
    >>> [round(end, 4) for end in metric_limits(0.8, 0.81)]
    [0.78, 0.83]
    >>> [round(end, 4) for end in metric_limits(0.99, 1.01)]
    [0.95, 1.0]
    """
    widen = max(0.0, 0.05 - (high - low)) / 2
    high = min(high + widen, 1.0)
    return min(low - widen, high - 0.05), high


def series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one column where it has values."""
    there = [row for row in rows if name in row]
    return [row["step"] for row in there], [row[name] for row in there]


@dataclass(frozen=True)
class Counted:
    """What the table says of the teacher besides its metrics.

    Attributes:
        report: Its zeros; in scope are the encoder's Linear weights.
        size: Bytes of its file; None where it is not on this disk.
    """

    report: SparsityReport
    size: int | None

    @classmethod
    def of(cls, teacher: PreTrainedModel, path: str) -> Counted:
        """Count a teacher that was loaded from `path`."""
        scope: set[str] = set()
        with suppress(ValueError):  # a family whose layers are not found has none
            scope = set(models.encoder_scope(teacher).select(teacher))
        file = Path(path) / "model.safetensors"
        size = file.stat().st_size if file.is_file() else None
        return cls(SparsityReport.count(teacher, scope), size)


def print_summary(result: Mapping[str, Any], counted: Counted, out: Path) -> None:
    """Print the run's one table: teacher against students, sparsity, size and time."""
    teacher, last, seconds = result["teacher"], result["student"], result["seconds"]
    students = [*result["milestones"], result]
    table = Table(title=f"{result['task']}, seed {result['seed']}")
    way = [f"at {milestone['target']:g}" for milestone in result["milestones"]]
    for column in ("", "teacher", *way, "student"):
        table.add_column(column, justify="left" if column == "" else "right")

    for name in last:
        ours = [f"{100 * student['student'][name]:.1f}" for student in students]
        table.add_row(name, f"{100 * teacher[name]:.1f}", *ours)
    table.add_section()
    for name, of in (("sparsity in scope", ""), ("sparsity of the model", "model_")):
        ours = [f"{100 * student[f'{of}sparsity']:.2f} %" for student in students]
        table.add_row(name, f"{100 * getattr(counted.report, f'{of}sparsity'):.2f} %", *ours)
    nonzero = [f"{student['nonzero']:,}" for student in students]
    table.add_row("non-zero weights", f"{counted.report.nonzero:,}", *nonzero)
    sizes = [counted.size, *[result["bytes"]] * len(students)]
    table.add_row(
        "file (zeros are stored)", *[f"{size / 1e6:.1f} MB" if size else "" for size in sizes]
    )
    table.add_section()
    ours = [*[""] * len(way), f"{seconds['student']:.1f}"]
    table.add_row("seconds", f"{seconds['teacher']:.1f}", *ours)
    console = Console()
    console.print(table)
    console.print(f"Results: {out}", soft_wrap=True, highlight=False)
