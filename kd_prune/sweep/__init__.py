"""Sweeps: many runs and their summary; nothing imported here needs torch."""

from kd_prune.sweep.collect import collect
from kd_prune.sweep.schema import Collection, Run, Student
from kd_prune.sweep.statistics import Comparison, Member, Row, Statistic, Summary, summarize_runs
from kd_prune.sweep.summarize import summarize_folders

__all__ = [
    "Collection",
    "Comparison",
    "Member",
    "Row",
    "Run",
    "Statistic",
    "Student",
    "Summary",
    "collect",
    "summarize_folders",
    "summarize_runs",
]
