"""Sweeps: many runs, one summary. ``python -m kd_prune.sweep <folder> …`` makes it at any time.

Nothing in here needs torch, so a summary is there at once, also where nothing is trained.
"""

from kd_prune.sweep.collect import collect
from kd_prune.sweep.records import Collection, Point, Run
from kd_prune.sweep.report import summarize
from kd_prune.sweep.summary import Row, Statistic, Summary, summarize_runs

__all__ = [
    "Collection",
    "Point",
    "Row",
    "Run",
    "Statistic",
    "Summary",
    "collect",
    "summarize",
    "summarize_runs",
]
