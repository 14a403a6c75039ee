"""Top floor: a job and how it is carried out. Where hf and lit meet."""

from kd_prune.run.check import PromiseError, full_key
from kd_prune.run.checkpoint import CheckpointError
from kd_prune.run.evaluation import evaluate_saved, run_of
from kd_prune.run.job import Job, Student, Teacher, cache_folder
from kd_prune.run.run import run

__all__ = [
    "CheckpointError",
    "Job",
    "PromiseError",
    "Student",
    "Teacher",
    "cache_folder",
    "evaluate_saved",
    "full_key",
    "run",
    "run_of",
]
