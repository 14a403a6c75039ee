"""Reporting: curves and summary table of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kd_prune.pipeline.rounds import is_round
from kd_prune.results import MilestoneResult, ModelResult, RunResult, StageResult


def draw_curves(
    rows: Sequence[Mapping[str, float]],
    path: Path,
    *,
    monitor: str,
    teacher: float | None,
    start: float | None = None,
    milestones: Sequence[MilestoneResult] = (),
) -> None:
    """Draw sparsity, each loss term and the validation metric over optimizer steps.

    The metric's axis spans 0.05 at least, so that noise is not made large, and ends at 1.

    Args:
        rows: `History.rows`.
        path: PNG file.
        monitor: The validation metric to show.
        teacher: The teacher's value of the metric; None: there is no teacher.
        start: Counted sparsity before the first step; None: unknown.
        milestones: Students saved at milestones.
    """
    figure = Figure(figsize=(7, 8))
    figure.subplots_adjust(left=0.11, right=0.97, bottom=0.07, top=0.98, hspace=0.06)
    sparsity, losses, metric = figure.subplots(3, 1, sharex=True)
    terms = sorted({name for row in rows for name in row if name.startswith("train/")})
    begin = [] if start is None else [{"step": 0, "sparsity/counted": start}]
    for name, style in (("sparsity/counted", "-"), ("sparsity/target", "--")):
        curve = series([*begin, *rows], name)
        sparsity.plot(*curve, style, label=name.split("/")[1], drawstyle="steps-post")
    for name in terms:
        width = 2.0 if name == "train/loss" else 1.0
        losses.plot(*series(rows, name), label=name.split("/")[1], linewidth=width)
    edge = {"clip_on": False, "zorder": 3}  # a marker at 1, the axis's end, is not cut off
    curve = series(rows, f"val/{monitor}")
    metric.plot(*curve, marker="o", markersize=3, label="student", **edge)
    if teacher is not None:
        metric.axhline(teacher, color="gray", linestyle="--", label="teacher", **edge)
    metric.spines["top"].set_visible(False)
    if milestones:
        steps = [milestone.step for milestone in milestones]
        values = [milestone.metrics[monitor] for milestone in milestones]
        metric.plot(
            steps, values, "D", markersize=7, fillstyle="none", label="milestones, saved", **edge
        )
    sparsity.set(ylabel="sparsity in scope", ylim=(0, 1))
    positive = any(row.get(name, 0.0) > 0 for row in rows for name in terms)
    losses.set(ylabel="loss (terms unweighted)", yscale="log" if positive else "linear")
    metric.set(ylabel=f"validation {monitor}", xlabel="optimizer steps")
    if is_fraction(monitor):
        metric.set_ylim(metric_limits(*metric.get_ylim()))
    sparsity.legend(loc="lower right")
    metric.legend(loc="lower right")
    losses.legend(fontsize="small", ncols=2)
    for axes in (sparsity, losses, metric):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def metric_limits(low: float, high: float) -> tuple[float, float]:
    """Return the ends of a metric's axis, at least 0.05 apart and at most 1.

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
    """Return steps and values of one column, without empty entries."""
    found = [row for row in rows if name in row]
    return [row["step"] for row in found], [row[name] for row in found]


def print_summary(result: RunResult, out: Path) -> None:
    """Print the run's table: metrics, sparsity, size and time of every stage and milestone.

    Of a stage of several rounds the last one is shown.
    """
    columns: dict[str, ModelResult] = {n: s for n, s in result.stages.items() if not is_round(n)}
    student = columns.pop("student")
    columns |= {f"at {milestone.target:g}": milestone for milestone in result.milestones}
    columns["student"] = student
    table = Table(title=f"{escape(result.task)}, seed {result.seed} (metrics in percent)")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    models = list(columns.values())
    for name in dict.fromkeys(name for model in reversed(models) for name in model.metrics):
        table.add_row(name, *(metric_text(name, model.metrics.get(name)) for model in models))
    table.add_section()
    table.add_row("sparsity in scope", *(f"{100 * m.sparsity:.2f} %" for m in models))
    table.add_row("sparsity of the model", *(f"{100 * m.model_sparsity:.2f} %" for m in models))
    table.add_row("non-zero weights", *(f"{m.nonzero:,}" for m in models))
    sizes = [f"{m.bytes / 1e6:.1f} MB" if m.bytes else "" for m in models]
    table.add_row("file (zeros are stored)", *sizes)
    table.add_section()
    seconds = [f"{m.seconds:.1f}" if isinstance(m, StageResult) else "" for m in models]
    table.add_row("seconds of training", *seconds)
    console = Console()
    console.print(table)
    print_place(out, console)


def print_place(path: Path, console: Console) -> None:
    """Say where the results are, whatever characters the path has."""
    console.print(f"Results: {path}", soft_wrap=True, highlight=False, markup=False)


def metric_text(name: str, value: float | None) -> str:
    """Format a metric for the table: in percent, a loss or a perplexity unchanged.

    >>> metric_text("accuracy", 0.875), metric_text("loss", 0.875), metric_text("f1", None)
    ('87.5', '0.875', '')
    """
    if value is None:
        return ""
    return f"{100 * value:.1f}" if is_fraction(name) else f"{value:.3f}"


def is_fraction(metric: str) -> bool:
    """Return whether a metric, or one named ``<split>/<metric>``, is at most 1.

    >>> is_fraction("accuracy"), is_fraction("test/perplexity"), is_fraction("loss/cosine")
    (True, False, False)
    """
    return {"loss", "perplexity"}.isdisjoint(metric.split("/"))
