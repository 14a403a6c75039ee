"""Evaluation: metrics and counted zeros of a saved model."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective
from kd_prune.distillation.activations import Activations, Batch
from kd_prune.pipeline.chance import Answers
from kd_prune.pipeline.context import Inputs
from kd_prune.pipeline.fitting import (
    enable_activations,
    make_trainer,
    single_device_job,
    stage_module,
    stage_objective,
)
from kd_prune.pipeline.job import Job
from kd_prune.pipeline.stage import ChainStage
from kd_prune.pruning import SparsityReport
from kd_prune.results import ModelResult

log = logging.getLogger(__name__)


def evaluate(
    job: Job,
    stage: ChainStage,
    inputs: Inputs,
    model: PreTrainedModel,
    *,
    role: str,
    teacher: PreTrainedModel | None = None,
    objective: Objective | None = None,
) -> dict[str, float]:
    """Compute the metrics of a model on a stage's validation splits: name → value.

    All rows are read, whatever `limit_val_batches` says of validation during a fit, except in a
    `fast_dev_run`. For a task without metrics the objective's loss is computed. A warning is logged
    if the model is hardly better than one answer for all rows.

    Args:
        job: The job, for its trainer; nothing is trained.
        stage: The stage, for its task and objective.
        inputs: Data of the stage.
        model: The model.
        role: Name of the model in the warning.
        teacher: Teacher of the objective, for a task without metrics.
        objective: The fitted objective, for a task without metrics; None: the stage's.
    """
    task = stage.task
    if task.metrics:
        teacher, objective = None, Objective({"hard_labels": HardLabels()})
    else:
        objective = objective or stage_objective(stage, model, teacher)
        for one in filter(None, (model, teacher)):
            enable_activations(one, objective.requires)
    names, answers = inputs.data.labels, Answers()

    def predict(outputs: Activations, batch: Batch) -> tuple[Tensor, Any]:
        predictions, targets = task.kind.predict(outputs, batch)
        if names:
            answers.add(predictions, targets)
        return predictions, targets

    module = stage_module(
        stage, inputs, model, teacher=teacher, objective=objective, predict=predict
    )
    _, validation = hf.loaders(task, inputs.data, inputs.tokenizer, seed=stage.seed)
    all_rows = {"limit_val_batches": 1.0, "overfit_batches": 0.0}
    trainer = make_trainer(
        single_device_job(job), [], logger=False, enable_model_summary=False, **all_rows
    )
    rows = trainer.validate(module, list(validation.values()), verbose=False)
    if found := answers.at_chance(names, accuracy_counts=task.monitor == "accuracy"):
        log.warning(
            "On %s, the %s %s. More steps (trainer.max_epochs, teacher.max_epochs) or another "
            "learning rate (optimizer.lr, teacher.optimizer.lr) may help; experiment=best is made "
            "for few steps, with a pre-trained model.",
            " and ".join(validation),
            role,
            found,
        )
    values = {name: value for row in rows for name, value in row.items()}
    return {name.removeprefix("val/"): float(value) for name, value in values.items()}


def model_result(
    model: PreTrainedModel, scope: Collection[str], metrics: dict[str, float], path: str, shown: str
) -> ModelResult:
    """Make the record of a model: metrics, counted zeros and file size.

    Args:
        model: The model.
        scope: Names of the parameters in scope.
        metrics: Metrics of the model.
        path: Folder or hub id of the model.
        shown: The path to put in the record.
    """
    report = SparsityReport.count(model, scope)
    files = list(Path(path).glob("*.safetensors"))
    return ModelResult(
        metrics=metrics,
        sparsity=report.sparsity if scope else 0.0,
        model_sparsity=report.model_sparsity,
        parameters=report.parameters,
        nonzero=report.nonzero,
        bytes=sum(file.stat().st_size for file in files) or None,
        path=shown,
    )
