"""Pipeline: one job, a chain of stages and a report; it combines the parts of hf and lit."""

from kd_prune.pipeline.fingerprint import versions
from kd_prune.pipeline.job import Job, cache_folder
from kd_prune.pipeline.resume_check import CheckpointError
from kd_prune.pipeline.run import run
from kd_prune.pipeline.saved_evaluation import evaluate_saved
from kd_prune.pipeline.stage import Stage, dense
from kd_prune.pipeline.verification import VerificationError

__all__ = [
    "CheckpointError",
    "Job",
    "Stage",
    "VerificationError",
    "cache_folder",
    "dense",
    "evaluate_saved",
    "run",
    "versions",
]
