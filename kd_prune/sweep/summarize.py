"""Summarize folders: read all runs, write the summary files, print the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kd_prune import atomic_io
from kd_prune.errors import UNSET, ConfigError
from kd_prune.sweep.collect import collect
from kd_prune.sweep.labels import sweep_title
from kd_prune.sweep.schema import Collection
from kd_prune.sweep.statistics import summarize_runs
from kd_prune.sweep.summary import print_summary, runs_csv, summary_csv


def summarize_folders(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    title: str | None = None,
    console: Console | None = None,
) -> Collection:
    """Write ``summary.csv``, ``runs.csv`` and ``report.html`` of all runs below the folders.

    Args:
        folders: Folders of sweeps, or any folders that contain run folders; jobs may be running.
        out: Folder of the files; None: the folder itself, if there is one only.
        title: Heading of the page; None: made from what the runs differ in.
        console: Where the tables are printed; None: the terminal.

    Raises:
        ConfigError: A folder does not exist or contains no run, or `out` is missing.
        OSError: `out` cannot be written to.
    """
    from kd_prune.sweep.page import write_page  # plotly is needed here only

    if out is None:
        if len(folders) != 1:
            raise ConfigError("--out", UNSET, "there are several folders", "name one for the files")
        out = folders[0]
    console = console or Console()
    collection = collect(folders)
    summary = summarize_runs(collection.runs)
    print_summary(collection, summary, console)
    out.mkdir(parents=True, exist_ok=True)
    atomic_io.write(out / "summary.csv", summary_csv(summary.rows))
    atomic_io.write(out / "runs.csv", runs_csv(collection.runs))
    title = title or sweep_title(collection.runs)
    write_page(collection, summary, out / "report.html", title=title)
    text = f"Summary: {out}/summary.csv, runs.csv, report.html"
    console.print(text, soft_wrap=True, markup=False)
    return collection
