"""Evaluation: metrics and counted zeros of a saved model."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective
from kd_prune.distillation.activations import Activations, Batch
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

    For a task without metrics the objective's loss is computed. A warning is logged if the model
    predicts the same class for every row.

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
    names, answers = inputs.data.labels, set[float]()

    def predict(outputs: Activations, batch: Batch) -> tuple[Tensor, Any]:
        predictions, targets = task.kind.predict(outputs, batch)
        if names:
            answers.update(torch.unique(predictions).tolist())
        return predictions, targets

    module = stage_module(
        stage, inputs, model, teacher=teacher, objective=objective, predict=predict
    )
    _, validation = hf.loaders(task, inputs.data, inputs.tokenizer, seed=stage.seed)
    trainer = make_trainer(single_device_job(job), [], logger=False, enable_model_summary=False)
    rows = trainer.validate(module, list(validation.values()), verbose=False)
    # A label may be a list, such as a tag per word.
    labels = {repr(label) for split in validation for label in _labels(inputs.data, split)}
    if names and len(answers) == 1 < len(labels):
        log.warning(
            "The %s gives every row of %s the same class, %s: it learnt nothing. More steps "
            "(trainer.max_epochs, teacher.max_epochs) or another learning rate may help; "
            "experiment=best is made for few steps.",
            role,
            " and ".join(validation),
            names[int(answers.pop())],
        )
    values = {name: value for row in rows for name, value in row.items()}
    return {name.removeprefix("val/"): float(value) for name, value in values.items()}


def _labels(data: hf.TaskData, split: str) -> list[Any]:
    rows = data.splits[split]
    return list(rows["labels"]) if "labels" in rows.column_names else []


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


def encoder_weights(model: PreTrainedModel) -> set[str]:
    """Return the names of the encoder's Linear weights; none if its layers are not found."""
    with suppress(ValueError):
        return set(hf.encoder_scope(model).select(model))
    return set()
