"""What a finished run leaves for people to read: result.json, curves.png and a table."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from kd_prune import whole


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    packages = ("kd_prune", "torch", "lightning", "transformers", "datasets", "torchmetrics")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file that is whole or the one before."""
    whole.write(path, json.dumps(values, indent=2, default=str) + "\n")


def draw_curves(
    rows: Sequence[Mapping[str, float]], path: Path, *, monitor: str, teacher: float
) -> None:
    """Draw sparsity, each loss term and the validation metric over optimizer steps.

    Args:
        rows: `History.rows`.
        path: PNG file.
        monitor: The validation metric to show.
        teacher: The teacher's value of it.
    """
    figure = Figure(figsize=(7, 8), layout="constrained")
    sparsity, losses, metric = figure.subplots(3, 1, sharex=True)
    terms = sorted({name for row in rows for name in row if name.startswith("train/")})
    for name, style in (("sparsity/counted", "-"), ("sparsity/target", "--")):
        sparsity.plot(*series(rows, name), style, label=name.split("/")[1], drawstyle="steps-post")
    for name in terms:
        width = 2.0 if name == "train/loss" else 1.0
        losses.plot(*series(rows, name), label=name.split("/")[1], linewidth=width)
    metric.plot(*series(rows, f"val/{monitor}"), marker="o", markersize=3, label="student")
    metric.axhline(teacher, color="gray", linestyle="--", label="teacher")
    sparsity.set(ylabel="sparsity in scope", ylim=(0, 1))
    losses.set(ylabel="loss (terms unweighted)", yscale="log")
    metric.set(ylabel=f"validation {monitor}", xlabel="optimizer steps")
    sparsity.legend(loc="lower right")
    metric.legend(loc="lower right")
    losses.legend(fontsize="small", ncols=2)
    for axes in (sparsity, losses, metric):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def series(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one column where it has values."""
    there = [row for row in rows if name in row]
    return [row["step"] for row in there], [row[name] for row in there]


def print_summary(result: Mapping[str, Any], out: Path) -> None:
    """Print the run's one table: teacher against student, sparsity, size and time."""
    table = Table(title=f"{result['task']}, seed {result['seed']}")
    for column in ("", "teacher", "student"):
        table.add_column(column, justify="left" if column == "" else "right")
    teacher, student = result["teacher"], result["student"]
    for name, value in student.items():
        table.add_row(name, f"{100 * teacher[name]:.1f}", f"{100 * value:.1f}")
    dense = result["parameters"]
    table.add_section()
    table.add_row("sparsity in scope", "0.0 %", f"{100 * result['sparsity']:.2f} %")
    table.add_row("sparsity of the model", "0.0 %", f"{100 * result['model_sparsity']:.2f} %")
    table.add_row("non-zero weights", f"{dense:,}", f"{result['nonzero']:,}")
    megabytes = f"{result['bytes'] / 1e6:.1f} MB"
    table.add_row("file (zeros are stored)", megabytes, megabytes)
    table.add_section()
    seconds = result["seconds"]
    table.add_row("seconds", f"{seconds['teacher']:.1f}", f"{seconds['student']:.1f}")
    console = Console()
    console.print(table)
    console.print(f"Results: {out}", soft_wrap=True, highlight=False)
