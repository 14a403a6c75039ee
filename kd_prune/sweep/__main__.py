"""``python -m kd_prune.sweep <folder> …``: one table and one page of all runs below the folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kd_prune.sweep.report import summarize


def main(arguments: list[str] | None = None) -> None:
    """Summarise what is there, also while jobs are at work."""
    parser = argparse.ArgumentParser(prog="python -m kd_prune.sweep", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="sweeps, or single run folders")
    parser.add_argument(
        "--out", type=Path, help="where the files go; with one folder that folder is the default"
    )
    given = parser.parse_args(arguments)
    if given.out is None and len(given.folders) > 1:
        parser.error("--out: several folders; say where their summary goes")
    try:
        summarize(given.folders, given.out or given.folders[0])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
