"""Page: a collection of runs as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from kd_prune import whole
from kd_prune.dotted import flatten
from kd_prune.sweep.method import text
from kd_prune.sweep.records import Collection, Point, Run

POINTS = 200
"""Points that a curve is thinned to: lowest and highest of every stretch."""


def write_page(collection: Collection, path: Path, *, title: str = "runs") -> None:
    """Write the report: figures, tables, filters and the data, in one file; whole or not at all.

    Nothing in it is fetched from anywhere. What runs say of themselves (names, reasons, values)
    goes in as data and is shown as text.

    Args:
        collection: The runs.
        path: The HTML file.
        title: Its heading.

    Raises:
        OSError: The disk is full, or the folder cannot be written to.
    """
    web = files("kd_prune.sweep") / "web"
    page = (web / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(title),
        "CSS": (web / "page.css").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        "DATA": as_script(page_data(collection)),
        "JS": (web / "page.js").read_text(encoding="utf-8"),
    }
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    whole.write(path, page)


def as_script(data: Mapping[str, Any]) -> str:
    r"""JSON that no content can end early: neither ``</script>`` nor ``<!--`` can appear in it.

    >>> print(as_script({"reason": "</script><!--"}))
    {"reason":"\u003c/script>\u003c!--"}
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, default=str)
    return text.replace("<", "\\u003c")


def page_data(collection: Collection) -> dict[str, Any]:
    """Everything that the page shows, as plain data."""
    configs = [flatten(run.config) for run in collection.runs]
    common = shared(configs)
    tensors: list[list[list[Any]]] = []
    return {
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "common": common,
        "tensors": tensors,
        "runs": [
            _run(run, config, common, tensors)
            for run, config in zip(collection.runs, configs, strict=True)
        ],
        "broken": [[str(path), why] for path, why in collection.broken],
    }


def shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Keys that have one value in all configurations that there are; values as text."""
    known = [{key: text(value) for key, value in config.items()} for config in configs if config]
    first = known[0] if known else {}
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in known)}


def _run(
    run: Run, config: Mapping[str, Any], common: Mapping[str, str], tensors: list[list[list[Any]]]
) -> dict[str, Any]:
    """One run. `tensors` gets its table of names and sizes, unless another run has the same."""
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
        "monitor": run.monitor,
        "ended": run.ended,
        "teacher": run.teacher,
        "points": [_point(point) for point in run.points],
        "bytes": run.bytes,
        "seconds": run.seconds.get("student"),
        "config": {k: text(v) for k, v in config.items() if common.get(k) != text(v)},
        "curves": {name: thinned(series) for name, series in curves.items()},
        "thinned": any(len(series) > POINTS for series in curves.values()),
        "table": tensors.index(table) if table else None,
        "zeros": [tensor["zeros"] for tensor in run.tensors],
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "target": point.target,
        "milestone": point.milestone,
        "student": point.student,
        "sparsity": point.sparsity,
        "model_sparsity": point.model_sparsity,
        "nonzero": point.nonzero,
    }


def _series(rows: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    for name in sorted({name for row in rows for name in row} - {"step", "epoch"}):
        values = [(row["step"], row[name]) for row in rows if name in row and "step" in row]
        yield name, [(step, value) for step, value in values if math.isfinite(value)]


def thinned(
    series: Sequence[tuple[float, float]], points: int = POINTS
) -> tuple[list[float], list[float]]:
    """Steps and values, at most `points` of them: first, last, lowest and highest of each stretch.

    >>> thinned([(step, step**2) for step in range(100)], points=6)[0]
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
    return [_short(step) for step, _ in kept], [_short(value) for _, value in kept]


def _short(value: float) -> float:
    """A number in five figures, and whole ones without a point: the page holds many."""
    return int(value) if value == int(value) else float(f"{value:.5g}")
