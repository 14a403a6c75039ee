"""Fitting: module, trainer and callbacks of one stage's fit."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, WeightAveraging
from transformers import PreTrainedModel

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective
from kd_prune.distillation.activations import HEADS
from kd_prune.errors import ConfigError, key_prefix
from kd_prune.lit import (
    DistillModule,
    NonFiniteError,
    ProgressLog,
    ResumePoint,
    SparsityCallback,
)
from kd_prune.pipeline.context import Context, Inputs
from kd_prune.pipeline.job import Job
from kd_prune.pipeline.messages import say_progress
from kd_prune.pipeline.stage import STUDENT, ChainStage


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Result of a fit besides the trained model.

    Attributes:
        seconds: Training time, including that before the fit was resumed.
        sparsity: The callback that pruned; None: nothing was pruned.
        objective: The objective with the projections that it learned.
        first_process: Whether this is the first of the processes that trained.
    """

    seconds: float
    sparsity: SparsityCallback | None
    objective: Objective
    first_process: bool


def stage_objective(
    stage: ChainStage, student: PreTrainedModel, teacher: PreTrainedModel | None
) -> Objective:
    """Copy a stage's objective, with projections if the models' widths differ."""
    objective = copy.deepcopy(stage.objective or Objective({"hard_labels": HardLabels()}))
    objective = objective.with_hard_label_loss(stage.task.kind.hard_label_loss)
    if teacher is not None:
        objective.match_widths(student.config.hidden_size, teacher.config.hidden_size)
    return objective


def enable_activations(model: PreTrainedModel, requires: Collection[str]) -> None:
    """Make a model return the required activations; SDPA stays on unless attention is required.

    Raises:
        ConfigError: The model's family gives no attention scores.
    """
    heads = not HEADS.isdisjoint(requires)
    if heads or "attention_scores" in requires:
        hf.enable_attention_scores(model, heads=heads)


def freeze_parts(stage: ChainStage, student: PreTrainedModel) -> None:
    """Exclude the parts of a stage's student from training that the stage names.

    Raises:
        ConfigError: A part is not found, or nothing is left to train.
    """
    if stage.freeze:
        with key_prefix(stage.key):
            hf.freeze(student, stage.freeze)


def stage_module(
    stage: ChainStage,
    inputs: Inputs,
    student: PreTrainedModel,
    *,
    teacher: PreTrainedModel | None,
    objective: Objective,
    predict: Callable[..., Any] | None = None,
) -> DistillModule:
    """Make the LightningModule of a stage's fit or evaluation."""
    task = stage.task
    return DistillModule(
        student,
        teacher=teacher,
        objective=objective,
        forward=hf.forward,
        optimizer=stage.optimizer,
        metrics=task.kind.metric_collection(task.metrics, inputs.data.num_outputs),
        predict=predict or task.kind.predict,
        validation=tuple(task.validation),
        validation_loss=not task.metrics,
    )


def make_trainer(job: Job, callbacks: Sequence[Callback], **settings: Any) -> L.Trainer:
    """Make a trainer that writes no files, and shows a progress bar only in a terminal."""
    bar = {} if sys.stdout.isatty() else {"enable_progress_bar": False}
    given = getattr(job.trainer, "keywords", {})
    return job.trainer(
        callbacks=list(callbacks),
        default_root_dir=job.out,
        enable_checkpointing=True,
        use_distributed_sampler=False,  # the batch sampler shares out the batches itself
        **{key: value for key, value in bar.items() if key not in given},
        **settings,
    )


def single_device_job(job: Job) -> Job:
    """Return the job with one process, for stages before the student and for evaluations."""
    if job.trainer(logger=False).world_size == 1:
        return job
    # Lightning's own environment: that of torchrun or Slurm says that there are more processes.
    single = {"devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": LightningEnvironment()}
    return replace(job, trainer=partial(job.trainer, **single))


def stage_limits(stage: ChainStage) -> dict[str, Any]:
    """Return the trainer settings that limit the fit of a stage before the student."""
    limits: dict[str, Any] = {"max_steps": stage.max_steps or -1, "max_time": None}
    if stage.max_epochs is not None:
        limits["max_epochs"] = stage.max_epochs
    elif stage.max_steps is not None:
        limits["max_epochs"] = -1
    return limits


def fit_stage(
    context: Context,
    stage: ChainStage,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    *,
    resume_point: ResumePoint,
    resume_from: str | None,
    sparsity: SparsityCallback | None,
    callbacks: Sequence[Callback] = (),
) -> Fit:
    """Train `student` in place, from a checkpoint if one is given.

    Args:
        context: The run.
        stage: The stage.
        student: The model to train.
        teacher: The model to learn from.
        resume_point: Callback that writes the fit's checkpoints.
        resume_from: Checkpoint to resume from.
        sparsity: Callback that prunes.
        callbacks: Further callbacks, after the one that prunes; moving averages before it.

    Raises:
        NonFiniteError: A loss became NaN; the message names the stage, and the last checkpoint.
    """
    inputs, is_student = context.inputs[stage.name], stage.name == STUDENT
    job = context.job if is_student else single_device_job(context.job)
    L.seed_everything(stage.seed, verbose=False)
    if stage.dropout is not None:
        for model in filter(None, (student, teacher)):  # a teacher's layers may train with it
            hf.set_dropout(model, stage.dropout)
    freeze_parts(stage, student)
    objective = stage_objective(stage, student, teacher)
    for model in filter(None, (student, teacher)):
        enable_activations(model, objective.requires)
    module = stage_module(stage, inputs, student.train(), teacher=teacher, objective=objective)
    settings = {"logger": list(job.logger.values()) or False} if is_student else {"logger": False}
    averages = [c for c in callbacks if isinstance(c, WeightAveraging)]  # pruned by `sparsity`
    others = [c for c in callbacks if c not in averages]
    trainer = make_trainer(
        job,
        [*averages, *filter(None, [sparsity]), *others, progress_log(stage), resume_point],
        **(settings if is_student else settings | stage_limits(stage)),
    )
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(job.config))
    batches, validation = hf.loaders(stage.task, inputs.data, inputs.tokenizer, seed=stage.seed)
    before = _modified(resume_point.path)
    with distributed_fit(trainer):
        try:
            trainer.fit(
                module,
                batches,
                list(validation.values()),
                ckpt_path=resume_from,
                weights_only=True,
            )
        except ConfigError as error:  # of a part that shows its defect only in use
            if sparsity and error.key.partition(".")[0] in sparsity.arguments():
                raise error.under(stage.setting_key("sparsity")) from error
            raise
        except NonFiniteError as error:
            written = _modified(resume_point.path) != before
            last = resume_point.path if written else resume_from
            left = f"the last checkpoint, {last}, is from before" if last else "nothing was saved"
            key = stage.setting_key("optimizer")
            raise NonFiniteError(
                f"the {stage.name}: {error.found}",
                # A resumed fit keeps the learning rate of its checkpoint, so that is no remedy.
                f"{left}; begin again with a lower {key}.lr or trainer.gradient_clip_val",
            ) from error
    return Fit(
        seconds=resume_point.seconds,
        sparsity=sparsity,
        objective=objective,
        first_process=trainer.is_global_zero,
    )


def progress_log(stage: ChainStage) -> ProgressLog:
    """Make the callback that logs a stage's progress, also if a terminal shows a bar."""
    return ProgressLog(stage.name, enabled=True, write=say_progress)


def _modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


LEFT_BY_LIGHTNING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Environment variables that Lightning leaves set; a later fit would take itself for a child."""


@contextmanager
def distributed_fit(trainer: L.Trainer) -> Iterator[None]:
    """Clean up after a fit in several processes, so that this process can start another fit."""
    before = {name: os.environ.get(name) for name in LEFT_BY_LIGHTNING}
    try:
        yield
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
    except BaseException:
        # Kill the other ranks here: they may wait for this one for ever. Lightning's process
        # observer would kill all jobs of a sweep, so its list of processes is emptied.
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
