"""What the fits of teacher and student share: module, trainer, evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective
from kd_prune.hf import models
from kd_prune.lit import DistillModule, metric_collection
from kd_prune.run.job import Job

Metrics = dict[str, float]


def make_module(
    job: Job,
    data: hf.TaskData,
    student: nn.Module,
    *,
    objective: Objective | None = None,
    optimizer: hf.FineTuning | None = None,
    teacher: nn.Module | None = None,
) -> DistillModule:
    """A module for the job's task; without more it learns from the labels."""
    return DistillModule(
        student,
        teacher=teacher,
        objective=objective or Objective({"hard_labels": HardLabels()}),
        forward=models.forward,
        optimizer=optimizer or job.optimizer,
        metrics=metric_collection(job.task.metrics, data.num_labels),
        validation=tuple(job.task.validation),
    )


def make_trainer(job: Job, callbacks: Sequence[Callback], **settings: Any) -> L.Trainer:
    """A trainer that shows progress and writes nothing by itself."""
    return job.trainer(
        callbacks=list(callbacks),
        default_root_dir=job.out,
        enable_checkpointing=True,
        use_distributed_sampler=False,  # the batch sampler shares out the batches itself
        **settings,
    )


def evaluate(
    job: Job, data: hf.TaskData, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Metrics:
    """Metrics of a model on the validation splits, by name."""
    module = make_module(job, data, model)
    _, validation = hf.loaders(job.task, data, tokenizer, seed=job.seed)
    trainer = make_trainer(job, [], logger=False, enable_model_summary=False)
    rows = trainer.validate(module, list(validation.values()), verbose=False)
    values = {name: value for row in rows for name, value in row.items()}
    return {name.removeprefix("val/").split("/dataloader")[0]: v for name, v in values.items()}
