"""The poster's figure: metric over the encoder weights that are kept, as the page of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_prune.results import RunResult, StageResult
from kd_prune.sweep.page import write_page
from kd_prune.sweep.schema import Collection, Run
from kd_prune.sweep.statistics import summarize_runs


def write_figure(runs: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], path: Path) -> None:
    """Write the page of all runs; the sparsity that it shows is that of the dense encoder.

    A student of half the layers is at 50 %, whatever its own weights are.

    Args:
        runs: Figures of the runs, as `poster.py` keeps them.
        metrics: Task → metric that is shown; accuracy where it is missing.
        path: The HTML file.
    """
    found = [run_of(run, metrics) for run in runs if "failed" not in run]
    path.parent.mkdir(parents=True, exist_ok=True)
    collection = Collection(runs=found, broken=[])
    title = "Metric over the encoder weights that are kept"
    write_page(collection, summarize_runs(found), path, title=title)


def run_of(run: Mapping[str, Any], metrics: Mapping[str, str]) -> Run:
    """Return a run as the page reads it."""
    sparsity = 1.0 - run["kept"]
    monitor = metrics.get(run["task"], "accuracy")
    student = StageResult(
        metrics=run["student"],
        sparsity=sparsity,
        model_sparsity=run["model_sparsity"],
        nonzero=run["encoder"]["left"],
        task=run["task"],
        monitor=monitor,
        seconds=run["seconds"]["student"],
    )
    teacher = StageResult(
        metrics=run["teacher"],
        nonzero=run["encoder"]["dense"],
        task=run["task"],
        seconds=run["seconds"]["teacher"],
    )
    # A target is what the page groups seeds by; measured shares differ a little between them.
    target = {"sparsity": {"final": round(1.0 - run["kept_in_table"], 4)}}
    return Run(
        folder=Path(f"{run['task']}-{run['row']}-{run['kept_in_table']:g}-s{run['seed']}"),
        state="finished",
        method=run["row"],
        result=RunResult(
            task=run["task"],
            seed=run["seed"],
            data="",
            monitor=monitor,
            stages={"teacher": teacher, "student": student},
            config=target,
        ),
    )
