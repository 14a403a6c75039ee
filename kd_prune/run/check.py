"""Refusals: what cannot work is found before anything is trained, what did not at the end."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from datasets import Dataset
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.hf import models
from kd_prune.lit import History, SparsityCallback, metric_collection
from kd_prune.lit.callback import refuse_sharding
from kd_prune.lit.run_length import RunLength, limited
from kd_prune.pruning import Pruner, Scope, SparsityReport
from kd_prune.pruning.mask import pruned_in
from kd_prune.run.checkpoint import CheckpointError
from kd_prune.run.job import Job
from kd_prune.run.teacher import load_fine_tuned

log = logging.getLogger(__name__)


def check(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
) -> RunLength:
    """Refuse what cannot work, before anything is trained; returns how long the student's fit is.

    Runs student and teacher (the student again where the teacher is yet to be trained) on a few
    rows, so that every term meets the activations it will get.
    """
    check_metrics(job.task, data.num_labels)
    trainer = checked_trainer(job)
    train, _ = hf.loaders(job.task, data, tokenizer, seed=job.seed)
    batches = math.ceil(len(train) / trainer.world_size)
    length = RunLength.ahead(trainer, batches)
    check_interval(trainer, "the student", batches)
    if not job.teacher.path:
        size = job.teacher.batch_size or job.task.batch_size
        rows = len(data.splits[job.task.train])
        check_interval(trainer, "the teacher", math.ceil(rows / size))
    if length.steps is None:
        raise ValueError(
            f"trainer.max_epochs={trainer.max_epochs}: the learning rate needs a number of steps "
            "to fall over; set max_epochs or max_steps too"
        )
    if job.sparsity:
        parameters = in_scope(job, student)
        refuse_sharding(trainer)
        try:
            job.sparsity.check(trainer, parameters, length)
        except ValueError as error:
            if str(error).startswith("trainer."):
                raise
            own = str(error).partition("=")[0] in signature(SparsityCallback).parameters
            raise ValueError(f"sparsity{'.' if own else ': '}{error}") from error
    teacher, rows = student, data.splits[job.task.train]
    if job.teacher.path:
        teacher = load_fine_tuned("teacher.path", job.teacher.path, data)
        models.check_pair(student, teacher)
        check_words(job.teacher.path, tokenizer)
        given = models.SEGMENTS in tokenizer.model_input_names
        if models.reads_segments(student) and not given and models.SEGMENTS in rows.column_names:
            raise ValueError(
                f"teacher.path={job.teacher.path}: the teacher is used to token_type_ids, which "
                "the student reads too, but not from its tokenizer; name them in model_input_names "
                "of the student's tokenizer_config.json"
            )
        if job.student.init == "teacher":
            models.check_same_shapes(student, teacher)
    warn_of_unknown_words(job, rows, tokenizer)
    check_lengths(job, data, min(models.positions(model) for model in (student, teacher)))
    requires = job.distillation.requires
    for model in (student, teacher):
        models.prepare(model, requires)
        model.train(False)
    batch = train.collate_fn([rows[i] for i in range(min(2, len(rows)))])
    with torch.no_grad():
        ours, theirs = (models.forward(model, batch, requires) for model in (student, teacher))
        try:
            job.distillation(ours, theirs, batch)
        except ValueError as error:
            raise ValueError(full_key(str(error))) from error
    return length


def full_key(message: str) -> str:
    """An objective's word on one of its terms, with the key that a command has for it.

    >>> full_key("terms.embeddings: too wide; set terms.embeddings.weight to 0")[:32]
    'distillation.terms.embeddings: t'
    """
    if not message.startswith("terms."):
        return message
    return message.replace("terms.", "distillation.terms.")


def check_metrics(task: hf.Task, num_labels: int) -> None:
    """Raise ValueError unless the task's metrics suit it; before labels are read as numbers too."""
    try:
        metric_collection(task.metrics, num_labels)
    except ValueError as error:
        if "does not suit" not in str(error):
            raise
        suits = ("pearson,spearman", "pearson") if num_labels == 1 else ("accuracy", "accuracy")
        remedy = "set task.metrics=[{}] and task.monitor={}".format(*suits)
        raise ValueError(f"{error}; {remedy}") from error


def check_place(job: Job, checkpoint: Mapping[str, Any], length: RunLength) -> None:
    """Raise CheckpointError if a checkpoint lies beyond the end of the run that goes on from it.

    The last checkpoint of a run lies at its end, and the same command may go on from there: what
    follows the fit is made again. Of a longer run it would leave a ramp without its end.
    """
    step, epoch, steps = checkpoint["global_step"], checkpoint["epoch"], length.steps or math.inf
    ramp = (checkpoint["callbacks"].get("SparsityCallback", {}).get("length") or {}).get("steps")
    epochs = job.trainer(logger=False).max_epochs or -1
    if step > steps or 0 < epochs <= epoch or (step == steps and (ramp or steps) > steps):
        raise CheckpointError(
            f"ckpt_path={job.ckpt_path}: after step {step}, in epoch {epoch + 1}"
            f"{f', of a run of {ramp} steps' if ramp else ''}, which leaves nothing to train: this "
            f"run ends after step {steps}; give the command that the checkpoint is of "
            "(trainer.max_epochs, trainer.max_steps), or leave ckpt_path out"
        )


def student_scope(job: Job, student: PreTrainedModel) -> Scope:
    """What may be pruned, in the student's own names."""
    own = job.sparsity.scope if job.sparsity else None
    return own or job.model.scope or models.encoder_scope(student)


def in_scope(job: Job, student: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The student's parameters that may be pruned.

    Raises:
        ValueError: As in `Scope.select`; the message names the key.
    """
    scope = student_scope(job, student)
    try:
        return scope.select(student)
    except ValueError as error:
        key = "sparsity.scope" if job.sparsity and job.sparsity.scope else "model.scope"
        raise ValueError(f"{key}: {error}") from error


def check_words(teacher: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the teacher reads the same words, where its tokenizer is at hand."""
    try:
        theirs = hf.Pretrained(path=teacher).tokenizer()
    except ValueError:  # saved without it: `check_pair` has compared the sizes
        return
    models.check_vocabularies(tokenizer, theirs)


def warn_of_unknown_words(
    job: Job, rows: Dataset, tokenizer: PreTrainedTokenizerBase, sample: int = 1000
) -> None:
    """Warn where most tokens of the first rows are unknown: the model knows other words."""
    tokens = [token for row in rows[:sample]["input_ids"] for token in row]
    unknown = sum(token == tokenizer.unk_token_id for token in tokens) / len(tokens)
    if unknown > 0.5:
        log.warning(
            "model.path=%s: its tokenizer does not know %.0f %% of the tokens of task=%s; take a "
            "model that reads such texts (model=minilm, …)",
            job.model.path,
            100 * unknown,
            job.task.name,
        )


def check_lengths(job: Job, data: hf.TaskData, positions: float) -> None:
    """Raise ValueError if a row has more tokens, or is padded to more, than models can read."""
    if (job.task.pad_to or 0) > positions:
        raise ValueError(
            f"task.pad_to={job.task.pad_to}: the model reads {positions} tokens at most; "
            "set it to that, or to null"
        )
    if job.task.max_length > positions:
        for split, rows in data.splits.items():
            if (longest := max(map(len, rows["input_ids"]))) > positions:
                raise ValueError(
                    f"task.max_length={job.task.max_length}: a row of the {split} split has "
                    f"{longest} tokens, the model reads {positions} at most; set it to that, or "
                    "take a model that reads more (model=…)"
                )


# Settings of Lightning's that end in no training at all, or in a division, where they are 0.
NEVER_ZERO = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "limit_val_batches",
    "val_check_interval",
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
)


def checked_trainer(job: Job) -> L.Trainer:
    """A trainer as the student's fit will have it.

    Raises:
        ValueError: It cannot be made here, or a setting cannot be 0; the message names the key.
    """
    try:
        trainer = job.trainer(logger=False)
    except (ImportError, TypeError, ValueError, MisconfigurationException) as error:
        settings = getattr(job.trainer, "keywords", {})
        words = set(re.findall(r"\w+", str(error).lower()))
        named = [f".{name}={value}" for name, value in settings.items() if name in words]
        if (asked := settings.get("accelerator")) in words:
            raise ValueError(
                f"trainer.accelerator={asked}: {error} Take trainer.accelerator=auto"
            ) from error
        raise ValueError(f"trainer{named[0] if len(named) == 1 else ''}: {error}") from error
    for name in NEVER_ZERO:
        if getattr(trainer, name) == 0:
            raise ValueError(f"trainer.{name}=0: expected a number above 0")
    if trainer.num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={trainer.num_nodes}: a job runs on one machine; a sweep's jobs run "
            "on many (docs/sweeps.md)"
        )
    return trainer


def check_interval(trainer: L.Trainer, who: str, batches: int) -> None:
    """Raise ValueError if no epoch is as long as the number of batches between validations."""
    interval, left = trainer.val_check_interval, limited(batches, trainer.limit_train_batches)
    across = trainer.check_val_every_n_epoch is None
    if isinstance(interval, int) and interval > left and not across:
        raise ValueError(
            f"trainer.val_check_interval={interval}: an epoch of {who} has {left} batches; lower "
            "it, or count across epochs with trainer.check_val_every_n_epoch=null"
        )


class PromiseError(RuntimeError):
    """A finished student is not what was promised."""


@dataclass(frozen=True)
class Promise:
    """What a student's zeros are held against; plain numbers, so that a checkpoint can keep it.

    Attributes:
        target: Sparsity that the last mask update was to give.
        masked: Weights that each tensor's mask prunes.
        counts: Weights that allocation and granularity were to prune; empty where that cannot be
            told (`Pruner.promised`).
    """

    target: float
    masked: list[int]
    counts: list[int]

    @classmethod
    def of(cls, pruner: Pruner) -> Promise:
        """What a Pruner's masks promise now."""
        return cls(
            target=pruner.target,
            masked=[pruned_in(mask) for mask in pruner.masks.values()],
            counts=list(pruner.promised.values()),
        )


def verify(promise: Promise, report: SparsityReport, folder: Path) -> None:
    """Raise PromiseError unless the student, read back from `folder`, is as sparse as promised.

    Every tensor has the zeros that its mask prunes, and every mask prunes exactly what was to be
    reached at the last update (where that cannot be told, the target to 0.1 % of the scope). Kept
    weights may be zero too, 0.1 % of the scope at most.
    """
    tensors = [tensor for tensor in report.tensors if tensor.in_scope]
    zeros, size = [tensor.zeros for tensor in tensors], sum(tensor.size for tensor in tensors)
    masked, counts = promise.masked, promise.counts or [round(promise.target * size)]
    slack = 1e-3 * size
    kept_promise = masked == counts if promise.counts else abs(sum(masked) - sum(counts)) <= slack
    survived = len(zeros) == len(masked) and all(z >= m for z, m in zip(zeros, masked, strict=True))
    if not (kept_promise and survived and sum(zeros) - sum(masked) <= slack):
        raise PromiseError(
            f"the student in {folder} has {sum(zeros)} zeros in scope where the masks prune "
            f"{sum(masked)} and {sum(counts)} of {size} were promised"
        )


def verify_reached(pruner: Pruner, out: Path) -> None:
    """Raise PromiseError if the fit ended on the ramp, before the last update that was planned."""
    end = max(pruner.plan.items(), default=(0, pruner.target))[1]
    if pruner.target != end:
        raise PromiseError(
            f"the fit in {out} ended on the ramp, at sparsity {pruner.target:.4g} of {end:g}; let "
            "it train until sparsity.end (its last.ckpt can go on)"
        )


def verify_history(history: History) -> None:
    """Raise PromiseError unless the metrics file, read back, holds every value of the fit."""
    with history.path.open(newline="") as handle:
        found = [{k: v for k, v in row.items() if v} for row in csv.DictReader(handle)]
    wanted = [{name: str(value) for name, value in row.items()} for row in history.rows]
    if not wanted or found != wanted:
        raise PromiseError(
            f"{history.path} does not hold the {len(wanted)} rows of this fit; did another process "
            "write to it?"
        )


def verify_retained(job: Job, student: float, teacher: float) -> None:
    """Raise PromiseError if the student has less than `min_retained` of the teacher's metric."""
    if job.student.min_retained and student < job.student.min_retained * teacher:
        raise PromiseError(
            f"student.min_retained={job.student.min_retained}: the student in {job.out} has "
            f"{job.task.monitor} {student:.4f}, the teacher {teacher:.4f}; it did not learn enough"
        )
