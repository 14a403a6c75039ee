"""What the fits of teacher and student share: module, trainer, evaluation."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective
from kd_prune.distillation.activations import Batch
from kd_prune.hf import models
from kd_prune.lit import DistillModule, NonFiniteError, metric_collection
from kd_prune.run.job import Job

log = logging.getLogger(__name__)
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


def on_one_device(job: Job) -> Job:
    """The job without its strategy: a teacher's fit and every evaluation take one process."""
    if job.trainer(logger=False).world_size == 1:
        return job
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None}
    return replace(job, trainer=partial(job.trainer, **alone))


# What Lightning leaves in the environment, and takes there for a fit that somebody else started.
LEFT_BY_LIGHTNING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


@contextmanager
def together(trainer: L.Trainer) -> Iterator[None]:
    """A fit that may take several processes; afterwards this one is alone, ready for another."""
    before = {name: os.environ.get(name) for name in LEFT_BY_LIGHTNING}
    try:
        yield
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
    except BaseException:
        # The others may wait for this one for good. Lightning's observer of theirs, which ends
        # everything where one of them fails, has nothing to see any more: the sweep goes on.
        children = getattr(trainer.strategy.launcher, "procs", [])
        others = children.copy()
        children.clear()
        for process in others:
            process.kill()
        raise
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def train(
    trainer: L.Trainer,
    module: DistillModule,
    batches: DataLoader[Batch],
    validation: Mapping[str, DataLoader[Batch]],
    *,
    stage: str,
    key: str,
    saved: Path,
    going_on: str | None,
) -> None:
    """Fit, from a checkpoint if there is one to go on from.

    Args:
        trainer: What fits.
        module: What is fitted.
        batches: Batches to learn from.
        validation: Split → batches to judge by.
        stage: What is being trained, for errors.
        key: The option of its optimizer.
        saved: Where its checkpoints go.
        going_on: The checkpoint to go on from.

    Raises:
        NonFiniteError: A loss became NaN; it says at which stage, and what is left.
    """

    def written() -> int | None:
        return saved.stat().st_mtime_ns if saved.is_file() else None

    at_first = written()
    try:
        trainer.fit(
            module, batches, list(validation.values()), ckpt_path=going_on, weights_only=True
        )
    except NonFiniteError as error:
        last = going_on if written() == at_first else saved
        left = f"the last checkpoint, {last}, is from before" if last else "nothing was saved yet"
        raise NonFiniteError(
            f"{stage}: {error.found}",
            # Another run: a checkpoint goes on with the learning rate that it has.
            f"{left}; begin anew with a lower {key}.lr or trainer.gradient_clip_val",
        ) from error


def evaluate(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    role: str,
) -> Metrics:
    """Metrics of a model on the validation splits, by name; warns where all rows get one class."""
    module = make_module(job, data, model)
    _, validation = hf.loaders(job.task, data, tokenizer, seed=job.seed)
    trainer = make_trainer(job, [], logger=False, enable_model_summary=False)
    answers = set[int]()

    def look(model: nn.Module, inputs: Any, outputs: Any) -> None:
        answers.update(outputs.logits.argmax(-1).unique().tolist())

    with model.register_forward_hook(look):
        rows = trainer.validate(module, list(validation.values()), verbose=False)
    labels = {label for split in validation for label in data.splits[split]["labels"]}
    if data.num_labels > 1 and len(answers) == 1 < len(labels):
        log.warning(
            "The %s gives every row of %s the same class, %s: it learnt nothing. More steps "
            "(trainer.max_epochs, teacher.max_epochs) or another learning rate may help; "
            "experiment=recovery_global is made for few steps.",
            role,
            " and ".join(validation),
            data.labels[answers.pop()],
        )
    values = {name: value for row in rows for name, value in row.items()}
    return {name.removeprefix("val/"): value for name, value in values.items()}
