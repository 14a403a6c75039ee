"""Report: everything that a summary leaves on disk and in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from kd_prune import whole
from kd_prune.sweep.collect import collect
from kd_prune.sweep.records import Collection
from kd_prune.sweep.summary import print_summary, runs_csv, summarize_runs, summary_csv


def summarize(folders: Iterable[Path], out: Path, console: Console | None = None) -> Collection:
    """Read the runs below the folders; write ``summary.csv``, ``runs.csv`` and ``report.html``.

    Args:
        folders: Sweeps, or anything with run folders below it; jobs may be at work there.
        out: Where the files go.
        console: Where the table is printed; None: the terminal.

    Raises:
        ValueError: A folder does not exist, or holds no run.
        OSError: `out` cannot be written to.
    """
    from kd_prune.sweep.page import write_page  # plotly: a job that only imports us needs none

    console = console or Console()
    folders = list(folders)
    collection = collect(folders)
    summary = summarize_runs(collection.runs)
    print_summary(collection, summary, console)
    out.mkdir(parents=True, exist_ok=True)
    whole.write(out / "summary.csv", summary_csv(summary.rows))
    whole.write(out / "runs.csv", runs_csv(collection.runs))
    title = ", ".join(folder.resolve().name for folder in folders)
    write_page(collection, out / "report.html", title=title)
    console.print(f"Summary: {out}/summary.csv, runs.csv, report.html", soft_wrap=True)
    return collection
