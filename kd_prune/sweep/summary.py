"""Summary of a sweep as text: ``summary.csv``, ``runs.csv`` and the printed tables."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from kd_prune.sweep.schema import Collection, Run
from kd_prune.sweep.statistics import Row, Statistic, Summary, stage_seconds, stages_of

FIGURES = ("student", "teacher", "delta")
COUNTED = ("sparsity", "model_sparsity", "parameters", "nonzero", "bytes")
MANY = 20
"""Lines of one kind that are printed at most; the files contain all."""
MANY_REFUSED = 3
"""Refused runs that are printed at most."""
WIDE = 14
"""Characters of a method's label that fit into a table of 80 columns."""


def summary_csv(rows: Sequence[Row]) -> str:
    """Write the rows as CSV, at full precision; fractions, not percent."""
    stages = _stage_names(member.run for row in rows for member in row.members)
    columns = ["task", "method", "target", "milestone", "seeds", "metric"]
    columns += [f"{name}_{part}" for name in FIGURES for part in ("mean", "std")]
    columns += [*COUNTED, *(f"{stage}/seconds" for stage in stages)]
    lines = []
    for row in rows:
        line = {name: getattr(row, name, None) for name in columns}
        for name in FIGURES:
            statistic: Statistic | None = getattr(row, name)
            line |= {f"{name}_{part}": getattr(statistic, part, None) for part in ("mean", "std")}
        line |= {f"{stage}/seconds": seconds for stage, seconds in row.seconds.items()}
        lines.append(line)
    return _csv(columns, lines)


def runs_csv(runs: Sequence[Run]) -> str:
    """Write a line per run and student, with the metrics and seconds of every stage."""
    stages = _stage_names(runs)
    of_run = ["folder", "state", "reason", "task", "method", "seed"]
    figures = [f"{stage}/{name}" for stage in stages for name in _metric_names(runs, stage)]
    seconds = [f"{stage}/seconds" for stage in stages]
    lines = []
    for run in runs:
        common = {name: getattr(run, name) for name in of_run}
        for stage, found in stages_of(run).items():
            if stage != "student":  # its students have their own, a milestone perhaps fewer
                common |= {f"{stage}/{name}": value for name, value in found.metrics.items()}
            common[f"{stage}/seconds"] = found.seconds
        if not run.students:
            lines.append({**common, "target": run.target})
        for student in run.students:
            counted = {name: getattr(student.result, name) for name in COUNTED}
            metrics = {f"student/{k}": value for k, value in student.result.metrics.items()}
            place = {"target": student.target, "milestone": student.milestone}
            lines.append({**common, **place, **counted, **metrics})
    return _csv([*of_run, "target", "milestone", *COUNTED, *figures, *seconds], lines)


def print_summary(collection: Collection, summary: Summary, console: Console | None = None) -> None:
    """Print the tables, then the runs and files that are not in them and why."""
    console = console or Console()
    for title, rows in _tables(summary.rows):
        console.print(_table(title, rows))
    if summary.rows:
        console.print("mean ± std over seeds; zeros: counted share of the weights in scope;")
        console.print("Δ: student minus its own teacher; kept: weights that are not zero")
        console.print(_seconds_line(collection.runs), highlight=False)
    if any(row.milestone for row in summary.rows):
        console.print("* milestone: saved before the run's final sparsity (sparsity.milestones)")
    _print_states(collection.runs, console)
    for run in summary.repeats:
        _line(console, "not counted", str(run.folder), "a later run repeats it")
    for path, why in collection.broken[:MANY]:
        _line(console, "not read", str(path), why)
    if len(collection.broken) > MANY:
        console.print(f"… and {len(collection.broken) - MANY} more not read: see report.html")


def _print_states(runs: Sequence[Run], console: Console) -> None:
    by_state: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_state[run.state].append(run)
    counts = ", ".join(f"{len(members)} {state}" for state, members in sorted(by_state.items()))
    console.print(f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {counts}", highlight=False)
    refused = [run for run in by_state["failed"] if run.refused]
    by_state["failed"] = [run for run in by_state["failed"] if not run.refused]
    _print_refused(refused, console)
    for state in ("failed", "interrupted", "stopped"):
        for run in by_state[state][:MANY]:
            _line(console, state, str(run.folder), run.reason)
        if len(by_state[state]) > MANY:
            console.print(f"… and {len(by_state[state]) - MANY} more {state}: see runs.csv")


def _print_refused(runs: Sequence[Run], console: Console) -> None:
    """Print how many runs were refused; nothing was trained there, so few of them are listed."""
    for run in runs[:MANY_REFUSED]:
        _line(console, "refused", str(run.folder), run.reason)
    if len(runs) > MANY_REFUSED:
        more = len(runs) - MANY_REFUSED
        console.print(
            f"… and {more} more refused before training (a setting cannot work): see runs.csv; "
            "their folders can be deleted",
            highlight=False,
            soft_wrap=True,
        )


def _line(console: Console, what: str, where: str, why: str | None) -> None:
    console.print(Text(f"{what}: {where}: {why or 'no reason was recorded'}"), soft_wrap=True)


def _seconds_line(runs: Sequence[Run]) -> str:
    """Format ``seconds per stage: teacher 61, student 40``, means over the runs that trained."""
    means = stage_seconds(runs)
    return "seconds per stage: " + ", ".join(f"{name} {value:.0f}" for name, value in means.items())


def _tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Split the rows into tables with titles: per task, and per method where labels are long."""
    for (task, metric), found in groupby(rows, key=lambda row: (row.task, row.metric)):
        members = list(found)
        if max(len(row.method) for row in members) <= WIDE:
            yield f"{task}: {metric}", members
            continue
        for method, part in groupby(members, key=lambda row: row.method):
            yield f"{task}: {metric}, {method}", list(part)


def _table(title: str, rows: Sequence[Row]) -> Table:
    with_method = len(rows[0].method) <= WIDE
    table = Table(
        title=Text(title),
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
    )
    if with_method:
        table.add_column("method", no_wrap=True)
    for name in ("zeros", "student", "teacher", "Δ", "seeds", "kept", "size", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *([Text(row.method)] if with_method else []),
            f"{100 * row.sparsity:.1f}%{'*' if row.milestone else ''}",
            row.student.text(row.metric),
            row.teacher.text(row.metric) if row.teacher else "–",
            row.delta.text(row.metric, sign=True) if row.delta else "–",
            str(row.seeds),
            short(row.nonzero),
            "–" if row.bytes is None else decimal(row.bytes, precision=0),
            "" if row.milestone else f"{row.seconds.get('student', 0.0):.0f} s",
        )
    return table


def short(count: int) -> str:
    """Write a count with three figures.

    >>> short(950), short(6872), short(999_700), short(12_345_678)
    ('950', '6.87k', '1M', '12.3M')
    """
    value, unit = float(count), ""
    for larger in ("k", "M", "G"):
        if value < 999.5:  # which three figures round up
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}{unit}"


def _stage_names(runs: Any) -> list[str]:
    """List the stages of all runs, in the order in which they ran; the student last."""
    names = dict.fromkeys(name for run in runs for name in stages_of(run))
    return sorted(names, key=lambda name: name == "student")


def _metric_names(runs: Sequence[Run], stage: str) -> list[str]:
    found = {n for run in runs if stage in stages_of(run) for n in stages_of(run)[stage].metrics}
    return sorted(found)


def _csv(columns: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
