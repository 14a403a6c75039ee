"""``kd-prune summary <folder> …``: one table and one page of all runs below some folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kd_prune.sweep import summarize_folders

DESCRIPTION = """\
Summarize all runs below some folders: a table of mean and spread over seeds, per task, method and
sparsity (printed, summary.csv), every run (runs.csv), and a page with plots (report.html). A sweep
does so at its end; this does it at any time, also while jobs run."""
EXAMPLES = """\
examples:
  kd-prune summary outputs/sweeps/<sweep>
  kd-prune summary outputs/sweeps/<one> outputs/sweeps/<other> --out comparison
  kd-prune summary outputs --out everything"""


def main(arguments: list[str]) -> None:
    """Write and print the summary."""
    parser = argparse.ArgumentParser(
        prog="kd-prune summary",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="sweeps, or single run folders")
    parser.add_argument(
        "--out", type=Path, help="folder for the files; needed where there are several folders"
    )
    parser.add_argument("--title", help="heading of the page; by default what the runs differ in")
    given = parser.parse_args(arguments)
    try:
        summarize_folders(given.folders, given.out, title=given.title)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
