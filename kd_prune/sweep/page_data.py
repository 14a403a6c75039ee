"""Data of the page: runs and their statistics as plain values; the page only filters and draws."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from kd_prune.config_utils import flatten
from kd_prune.results import is_loss
from kd_prune.sweep.differences import setting_text
from kd_prune.sweep.schema import Collection, Run
from kd_prune.sweep.statistics import (
    SIZES,
    Comparison,
    Row,
    Statistic,
    Summary,
    dominating,
    make_row,
    stages_of,
    teacher_levels,
)

POINTS = 200
"""Points that a curve keeps at most."""


def page_data(collection: Collection, summary: Summary) -> dict[str, Any]:
    """Return everything that the page shows.

    A filter may leave only some seeds of a row in view. The page then shows these seeds one by one
    (`parts`), so it never computes a statistic itself.
    """
    runs = collection.runs
    configs = [flatten(run.config) for run in runs]
    common = common_settings(configs)
    tensors: list[list[list[Any]]] = []
    return {
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "common": common,
        "tensors": tensors,
        "runs": [
            _run(run, config, common, tensors) for run, config in zip(runs, configs, strict=True)
        ],
        "groups": len(summary.rows),
        "rows": _rows(summary.rows, {run.folder: i for i, run in enumerate(runs)}),
        "teachers": teacher_levels(runs),
        "losses": sorted({name for name in _all_metrics(runs) if is_loss(name)}),
        "broken": [[str(path), why] for path, why in collection.broken],
    }


def common_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the settings that are the same in all known configurations; values as text."""
    known = [{k: setting_text(v) for k, v in config.items()} for config in configs if config]
    first = known[0] if known else {}
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in known)}


def _all_metrics(runs: Sequence[Run]) -> set[str]:
    return {name for run in runs for stage in stages_of(run).values() for name in stage.metrics}


def _rows(rows: Sequence[Row], index: Mapping[Any, int]) -> list[dict[str, Any]]:
    """Return all rows, then their single students, each with the rows that dominate it."""
    parts = [(i, make_row((member,))) for i, row in enumerate(rows) if row.seeds > 1
             for member in row.members]  # fmt: skip
    data = [_row(row, index) for row in rows]
    for parent, part in parts:
        data[parent]["parts"].append(len(data))
        data.append(_row(part, index) | {"seed": part.members[0].run.seed, "part": True})
    # A row is compared with rows, a single student with those of its seed, rows of one among them.
    compared = defaultdict(list)
    for i, row in enumerate(data):
        compared[row["task"], row.get("part"), row.get("seed")].append(i)
    for i, single in enumerate(rows):
        if single.seeds == 1:
            compared[single.task, True, single.members[0].run.seed].append(i)
    for indices in compared.values():
        _add_dominating(data, indices)
    return data


def _add_dominating(data: Sequence[dict[str, Any]], indices: Sequence[int]) -> None:
    for metric in {name for i in indices for name in data[i]["metrics"]}:
        for size in SIZES:
            there = [
                i for i in indices if metric in data[i]["metrics"] and data[i][size] is not None
            ]
            sign = -1 if is_loss(metric) else 1
            places = [
                (data[i][size], sign * data[i]["metrics"][metric]["student"][0]) for i in there
            ]
            for i, better in zip(there, dominating(places), strict=True):
                found = data[i]["metrics"][metric].setdefault(size, [])
                known = set(found)
                found += [there[k] for k in better if there[k] not in known]


def _row(row: Row, index: Mapping[Any, int]) -> dict[str, Any]:
    return {
        "task": row.task,
        "method": row.method,
        "target": row.target,
        "milestone": row.milestone,
        "metric": row.metric,
        "seeds": row.seeds,
        "members": [index[member.run.folder] for member in row.members],
        "parts": [],
        "metrics": {name: _comparison(found) for name, found in row.metrics.items()},
        "sparsity": row.sparsity,
        "kept": 1 - row.sparsity,
        "nonzero": row.nonzero,
        "bytes": row.bytes,
        "seconds": None if row.milestone else row.seconds.get("student"),
    }


def _comparison(found: Comparison) -> dict[str, Any]:
    figures = {"student": found.student, "teacher": found.teacher, "delta": found.delta}
    return {name: _pair(statistic) for name, statistic in figures.items()}


def _pair(statistic: Statistic | None) -> list[float | None] | None:
    return [statistic.mean, statistic.std] if statistic else None


def _run(
    run: Run, config: Mapping[str, Any], common: Mapping[str, str], tensors: list[list[list[Any]]]
) -> dict[str, Any]:
    """Return one run; its table of names and sizes is added to `tensors` if it is a new one."""
    table = [[tensor["name"], tensor["size"]] for tensor in run.tensors]
    if table and table not in tensors:
        tensors.append(table)
    curves = dict(_series(run.curves))
    return {
        "name": run.folder.name,
        "folder": str(run.folder),
        "state": run.state,
        "reason": run.reason,
        "task": run.task,
        "method": run.method or "?",
        "seed": run.seed,
        "target": run.target,
        "targets": [student.target for student in run.students],
        "monitor": run.monitor,
        "ended": run.ended,
        "stages": {
            name: {"metrics": dict(stage.metrics), "seconds": stage.seconds}
            for name, stage in stages_of(run).items()
        },
        "sparsity": run.result.student.sparsity if run.result else None,
        "nonzero": run.result.student.nonzero if run.result else None,
        "config": {
            k: setting_text(v) for k, v in config.items() if common.get(k) != setting_text(v)
        },
        "curves": {name: downsample(series) for name, series in curves.items()},
        "downsampled": any(len(series) > POINTS for series in curves.values()),
        "table": tensors.index(table) if table else None,
        "zeros": [tensor["zeros"] for tensor in run.tensors],
    }


def _series(rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    for name in sorted({name for row in rows for name in row} - {"step", "epoch"}):
        values = [(row["step"], row[name]) for row in rows if name in row and "step" in row]
        yield name, [(step, value) for step, value in values if math.isfinite(value)]


def downsample(
    series: Sequence[tuple[float, float]], points: int = POINTS
) -> tuple[list[float], list[float]]:
    """Return steps and values of a curve, at most `points` of them.

    Kept are the first, the last, and the lowest and highest of every stretch between.

    >>> downsample([(step, step**2) for step in range(100)], points=6)[0]
    [0, 1, 49, 50, 98, 99]
    """
    kept = list(series)
    if len(kept) > points:
        stretches = max(1, (points - 2) // 2)
        kept = [series[0]]
        for k in range(stretches):
            start, stop = (1 + (len(series) - 2) * i // stretches for i in (k, k + 1))
            stretch = series[start:stop]
            kept += sorted({min(stretch, key=lambda at: at[1]), max(stretch, key=lambda at: at[1])})
        kept.append(series[-1])
    return [_rounded(step) for step, _ in kept], [_rounded(value) for _, value in kept]


def _rounded(value: float) -> float:
    """Round to five digits, which keeps the page small; whole numbers become integers."""
    return int(value) if value == int(value) else float(f"{value:.5g}")
