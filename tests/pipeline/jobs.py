"""Helpers of the pipeline's tests: sizes, trainers and callbacks of tiny jobs."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as L

from kd_prune.lit import SparsityCallback
from kd_prune.pipeline import Job
from kd_prune.pipeline.context import Context
from kd_prune.pipeline.job import cache_folder
from kd_prune.pipeline.models import initial_model, teacher_model
from kd_prune.pipeline.stage_cache import stage_folder
from kd_prune.results import RunResult, StageResult

ROWS, BATCH, EPOCHS = 96, 16, 2
LABELS = ["animal", "fruit", "garment", "instrument", "metal", "tool", "tree", "vessel"]
STEPS = EPOCHS * ROWS // BATCH


class Finished(NamedTuple):
    """A finished run."""

    out: Path
    job: Job
    result: RunResult


def trainer(**settings):
    return partial(
        L.Trainer,
        **{
            "accelerator": os.environ["KD_PRUNE_TEST_ACCELERATOR"],
            "devices": 1,
            "max_epochs": EPOCHS,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        }
        | settings,
    )


def weights(folder: Path | str) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def scoped_rows(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's sparsity.csv that are in scope."""
    with (folder / "sparsity.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["in_scope"] == "True"]


def timeless(result: StageResult) -> StageResult:
    """The outcome without the time that it took."""
    return replace(result, seconds=0.0)


def found_again(result: StageResult) -> StageResult:
    """The outcome as a run has it that finds it in the cache."""
    return replace(result, reused=True)


def loaded_context(job: Job) -> Context:
    """A run of the job that has read its data and done nothing more."""
    context = Context(job, cache_folder(job.cache_dir), job.chain())
    context.load_inputs()
    return context


def folder_of(job: Job, name: str) -> Path:
    """The folder in which one of the job's stages is looked for; nothing is trained."""
    context = loaded_context(job)
    stage = context.chain[name]
    return stage_folder(
        context, stage, initial_model(context, stage), teacher_model(context, stage)
    )


def milestone_sparsity(**settings):
    """A callback that saves students of two lower sparsities on its way to 0.9."""
    return SparsityCallback(
        0.9, updates=4, end=0.9, milestones=[0.4, 0.7], milestone_length=0.3, **settings
    )


class InterruptAt(L.Callback):
    """Sends this process SIGTERM after an optimizer step; -1: never."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class KeepSparsity(L.Callback):
    """Keeps the callback that prunes in the fit, of which a run makes a copy."""

    sparsity: SparsityCallback

    def on_train_start(self, trainer, pl_module):
        (self.sparsity,) = (c for c in trainer.callbacks if isinstance(c, SparsityCallback))
