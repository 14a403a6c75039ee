"""Summary: runs → one row per (task, method, target), over seeds."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from kd_prune.sweep.records import Collection, Point, Run

FIGURES = ("student", "teacher", "delta")
MANY = 20
"""Lines about runs of one state that a terminal gets; files get all."""
WIDE = 14
"""Characters of a method's name that a table of 80 columns has room for."""


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation over seeds; None: fewer than two."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistic:
        """Of one value per seed."""
        values = list(values)
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)

    def percent(self, *, sign: bool = False) -> str:
        """``75.3±0.8``, in hundredths."""
        mean = f"{100 * self.mean:{'+' if sign else ''}.1f}"
        return mean if self.std is None else f"{mean}±{100 * self.std:.1f}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the summary.

    Attributes:
        task: Name of the task.
        method: See `kd_prune.sweep.method`.
        target: Sparsity in scope asked for; None: a dense student.
        milestone: Whether these students were saved on the way to a higher sparsity.
        seeds: How many runs it is made of, one per seed.
        metric: The task's headline metric.
        student: Its value for the students.
        teacher: For their teachers.
        delta: Student minus its own teacher.
        sparsity: Share of the weights in scope that are zero, counted.
        model_sparsity: Of all weights, likewise.
        parameters: Weights of a student.
        nonzero: Those that are not zero.
        bytes: Its size on disk, zeros included.
        seconds: Of the student's training; with all of its milestones.
    """

    task: str
    method: str
    target: float | None
    milestone: bool
    seeds: int
    metric: str
    student: Statistic
    teacher: Statistic
    delta: Statistic
    sparsity: float
    model_sparsity: float
    parameters: int
    nonzero: int
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Rows by task, method and target, and runs that another one stands for.

    Attributes:
        rows: The lines.
        repeats: Finished runs left out: a later one has the same task, method, target and seed.
    """

    rows: list[Row]
    repeats: list[Run]


def summarize_runs(runs: Sequence[Run]) -> Summary:
    """Mean and spread over seeds of every (task, method, target) there is.

    A seed counts once: of runs with the same task, method, target and seed the one that ended last.
    """
    groups: dict[tuple[str, str, float | None, bool], dict[int | None, tuple[Run, Point]]]
    groups = defaultdict(dict)
    repeats = []
    for run in sorted(runs, key=lambda run: (run.ended or "", run.folder)):
        for point in run.points:
            group = groups[run.task, run.method, point.target, point.milestone]
            if run.seed in group and not point.milestone:
                repeats.append(group[run.seed][0])
            group[run.seed] = (run, point)
    order = sorted(groups, key=lambda key: (key[0], key[1], -1 if key[2] is None else key[2]))
    return Summary(rows=[_row(key, list(groups[key].values())) for key in order], repeats=repeats)


def _row(key: tuple[str, str, float | None, bool], members: Sequence[tuple[Run, Point]]) -> Row:
    task, method, target, milestone = key
    metric = members[0][0].monitor
    students = [point.student[metric] for _, point in members]
    teachers = [run.teacher[metric] for run, _ in members]
    points = [point for _, point in members]
    return Row(
        task=task,
        method=method,
        target=target,
        milestone=milestone,
        seeds=len(members),
        metric=metric,
        student=Statistic.of(students),
        teacher=Statistic.of(teachers),
        delta=Statistic.of(s - t for s, t in zip(students, teachers, strict=True)),
        sparsity=fmean(point.sparsity for point in points),
        model_sparsity=fmean(point.model_sparsity for point in points),
        parameters=round(fmean(point.parameters for point in points)),
        nonzero=round(fmean(point.nonzero for point in points)),
        bytes=round(fmean(run.bytes for run, _ in members)),
        seconds=fmean(run.seconds.get("student", 0.0) for run, _ in members),
    )


def summary_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, at full precision; fractions, not percent."""
    file = io.StringIO()
    names = [name for name in Row.__dataclass_fields__ if name not in FIGURES]
    figures = [f"{name}_{part}" for name in FIGURES for part in ("mean", "std")]
    at = names.index("metric") + 1
    writer = csv.DictWriter(file, [*names[:at], *figures, *names[at:]], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = {name: getattr(row, name) for name in names}
        for name in FIGURES:
            statistic = getattr(row, name)
            values |= {f"{name}_mean": statistic.mean, f"{name}_std": statistic.std}
        writer.writerow(values)
    return file.getvalue()


def runs_csv(runs: Sequence[Run]) -> str:
    """A line per run and student, with all its metrics, for one's own analysis."""
    file = io.StringIO()
    metrics = sorted({name for run in runs for point in run.points for name in point.student})
    columns = ["folder", "state", "reason", "task", "method", "seed", "target", "milestone"]
    columns += ["sparsity", "model_sparsity", "parameters", "nonzero", "bytes", "seconds"]
    columns += [f"{who}/{name}" for name in metrics for who in ("student", "teacher")]
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        common = {name: getattr(run, name) for name in columns[:6]}
        if not run.points:
            writer.writerow({**common, "target": run.target})
        for point in run.points:
            values = {name: getattr(point, name) for name in columns[6:12]}
            values |= {"bytes": run.bytes, "seconds": run.seconds.get("student")}
            values |= {f"student/{name}": value for name, value in point.student.items()}
            values |= {f"teacher/{name}": run.teacher.get(name) for name in point.student}
            writer.writerow({**common, **values})
    return file.getvalue()


def print_summary(collection: Collection, summary: Summary, console: Console | None = None) -> None:
    """Print the table, then what is not in it and why."""
    console = console or Console()
    for title, rows in _tables(summary.rows):
        console.print(_table(title, rows))
    if summary.rows:
        console.print(
            "mean ± std over seeds; zeros: share of the weights in scope, counted; Δ: from"
        )
        console.print("the student's own teacher; kept: weights that are not zero")
    if any(row.milestone for row in summary.rows):
        console.print("* saved on the way to a higher sparsity (sparsity.milestones)")
    states: dict[str, list[Run]] = defaultdict(list)
    for run in collection.runs:
        states[run.state].append(run)
    found = ", ".join(f"{len(runs)} {state}" for state, runs in sorted(states.items()))
    count = len(collection.runs)
    console.print(f"{count} run{'s'[: count - 1]}: {found}", highlight=False)
    for state in ("failed", "interrupted", "pruned"):
        for run in states[state][:MANY]:
            _line(console, state, str(run.folder), run.reason)
        if len(states[state]) > MANY:
            console.print(f"… and {len(states[state]) - MANY} more {state}: see runs.csv")
    for run in summary.repeats:
        _line(console, "not counted", str(run.folder), "a later run repeats it")
    for path, why in collection.broken:
        _line(console, "not read", str(path), why)


def _line(console: Console, what: str, where: str, why: str | None) -> None:
    console.print(Text(f"{what}: {where}: {why or 'no reason was recorded'}"), soft_wrap=True)


def _tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows that share a table, and its title: a task's; of one method each where names are long."""
    for (task, metric), found in groupby(rows, key=lambda row: (row.task, row.metric)):
        ours = list(found)
        if max(len(row.method) for row in ours) <= WIDE:
            yield f"{task}: {metric}", ours
            continue
        for method, part in groupby(ours, key=lambda row: row.method):
            yield f"{task}: {metric}, {method}", list(part)


def _table(title: str, rows: Sequence[Row]) -> Table:
    named = len(rows[0].method) <= WIDE
    table = Table(
        title=Text(title),
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
    )
    if named:
        table.add_column("method", no_wrap=True)
    for name in ("zeros", "student", "teacher", "Δ", "seeds", "kept", "size", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *([Text(row.method)] if named else []),
            f"{100 * row.sparsity:.1f}%{'*' if row.milestone else ''}",
            row.student.percent(),
            row.teacher.percent(),
            row.delta.percent(sign=True),
            str(row.seeds),
            short(row.nonzero),
            decimal(row.bytes, precision=0),
            "" if row.milestone else f"{row.seconds:.0f} s",
        )
    return table


def short(count: int) -> str:
    """A count in three figures.

    >>> short(950), short(6872), short(12_345_678)
    ('950', '6.87k', '12.3M')
    """
    value, unit = float(count), ""
    for larger in ("k", "M", "G"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}{unit}"
