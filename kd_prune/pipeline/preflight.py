"""Preflight: settings that cannot work are refused before training."""

from __future__ import annotations

import logging
import math

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.distillation import Objective
from kd_prune.errors import ConfigError, key_prefix
from kd_prune.hf.batches import row_lengths
from kd_prune.lit.progress import RunLength
from kd_prune.pipeline.context import Context, GivenModel, saved_tokenizer
from kd_prune.pipeline.fitting import (
    enable_activations,
    freeze_parts,
    single_device_job,
    stage_limits,
    stage_objective,
)
from kd_prune.pipeline.job import Job
from kd_prune.pipeline.models import (
    initial_model,
    load_fine_tuned,
    stage_scope,
    teacher_model,
)
from kd_prune.pipeline.stage import STUDENT, ChainStage
from kd_prune.pipeline.trainer_checks import check_interval, checked_trainer

log = logging.getLogger(__name__)


def check_student_task(task: hf.Task) -> None:
    """Refuse a task without metrics for the student, by which it is reported.

    Raises:
        ConfigError: The task has none.
    """
    if not task.metrics:
        raise ConfigError(
            "task.metrics",
            [],
            "a student is reported by a metric",
            "learn a task without labels in a stage before the student (experiment=sparse_base)",
        )


def check_stage(context: Context, stage: ChainStage) -> RunLength | None:
    """Refuse a stage that cannot work; return the length of its fit, None for a given model.

    The objective is computed once on a few rows, with models of the right shapes.

    Raises:
        ConfigError: A setting cannot work; with the full key of the setting.
    """
    inputs, task = context.inputs[stage.name], stage.task
    with key_prefix(stage.task_key):
        task.kind.metric_collection(task.metrics, inputs.data.num_outputs)
    if stage.path:
        if stage.objective is None:  # it will be evaluated
            load_fine_tuned(GivenModel.of(stage.path, f"{stage.key}.path"), task, inputs.data)
        return None
    student = initial_model(context, stage)
    freeze_parts(stage, student)
    length = check_trainer(context, stage, student)
    if isinstance(stage.optimizer, hf.AdamWWithSchedule):  # it may be a function of the user's
        with key_prefix(stage.setting_key("optimizer")):
            stage.optimizer(student, length.total)
    teacher = teacher_model(context, stage)
    rows = inputs.data.splits[task.train]
    check_tokenizers(context, stage, student, teacher)
    first = next(
        n for n, i in context.inputs.items() if i.data.fingerprint == inputs.data.fingerprint
    )
    if stage.name == first:  # one warning is enough
        warn_of_unknown_tokens(context.job, task, rows, inputs.tokenizer)
        warn_of_truncated_rows(task, rows)
    check_token_ids(inputs.data, inputs.tokenizer, student, context.job.model.path)
    with key_prefix(stage.task_key):
        limit = min(hf.max_positions(m) for m in (student, teacher) if m is not None)
        check_lengths(task, inputs.data, limit)
    objective = stage_objective(stage, student, teacher)
    for model in filter(None, (student, teacher)):
        enable_activations(model, objective.requires)
    for name, callback in stage.callbacks.items():
        with key_prefix(f"{stage.setting_key('callbacks')}.{name}"):
            if check_models := getattr(callback, "check_models", None):
                check_models(student, teacher)
            if check_sparsity := getattr(callback, "check_sparsity", None):
                check_sparsity(stage.sparsity, length)
    with key_prefix(stage.setting_key("objective")):
        dry_run(context, stage, student, teacher, objective)
    return length


def check_trainer(context: Context, stage: ChainStage, student: PreTrainedModel) -> RunLength:
    """Refuse a trainer, or a ramp, that cannot work; return the length of the fit.

    Raises:
        ConfigError: A setting of the trainer or of `sparsity` cannot work.
    """
    is_student, job = stage.name == STUDENT, context.job
    if not is_student:
        checked_trainer(job, {})  # with the devices of the command, before one is chosen
        job = single_device_job(job)
    trainer = checked_trainer(job, {} if is_student else stage_limits(stage))
    rows = len(context.inputs[stage.name].data.splits[stage.task.train])
    batches = math.ceil(math.ceil(rows / stage.task.batch_size) / trainer.world_size)
    limited_by = (trainer.max_epochs or 0) > 0 or trainer.max_steps > 0
    if not is_student and not limited_by:
        raise ConfigError(
            f"{stage.key}.max_epochs",
            stage.max_epochs,
            "the stage has no end, and the trainer's own limits are the student's",
            f"set it, or {stage.key}.max_steps",
        )
    length = RunLength.from_trainer_config(trainer, batches)
    check_interval(trainer, f"the {stage.name}", batches)
    if length.steps is None:
        raise ConfigError(
            "trainer.max_epochs",
            trainer.max_epochs,
            "the learning rate needs a number of steps to fall over",
            "set max_epochs or max_steps too",
        )
    if stage.sparsity:
        key = stage.setting_key("sparsity")
        parameters = stage_scope(context, stage, student).select(student)
        try:
            stage.sparsity.check(trainer, student, parameters, length)
        except ConfigError as error:
            raise error if error.key.startswith("trainer.") else error.under(key) from error
        except ValueError as error:
            raise ConfigError(key, expected=str(error)) from error
    return length


def dry_run(
    context: Context,
    stage: ChainStage,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    objective: Objective,
) -> None:
    """Compute a stage's objective on two rows.

    Raises:
        ConfigError: An activation that a term requires is missing, or the models do not fit
            together.
    """
    inputs = context.inputs[stage.name]
    rows = inputs.data.splits[stage.task.train]
    loader, _ = hf.loaders(stage.task, inputs.data, inputs.tokenizer, seed=0)
    batch = loader.collate_fn([rows[i] for i in range(min(2, len(rows)))])
    models = [model for model in (student, teacher) if model is not None]
    for model in models:
        model.train(False)
    with torch.no_grad():
        ours, *theirs = (hf.forward(model, batch, objective.requires) for model in models)
        objective(ours, theirs[0] if theirs else None, batch)


def check_tokenizers(
    context: Context, stage: ChainStage, student: PreTrainedModel, teacher: PreTrainedModel | None
) -> None:
    """Refuse a teacher, or a given initial model, that was made for other tokens than the stage's.

    Raises:
        ConfigError: The vocabularies or the texts' tokens differ.
    """
    tokenizer = context.inputs[stage.name].tokenizer
    if teacher is not None:
        check_teacher(context, stage, student, teacher)
    given = context.given_source(stage)
    theirs = saved_tokenizer(given.path) if given else None
    if given and theirs is not None:
        try:
            hf.check_vocabularies(tokenizer, theirs)
        except ConfigError as error:
            raise ConfigError(
                given.key,
                given.path,
                "its tokenizer differs from that of model.path, which makes the tokens",
                "set model.path to a model with the same tokenizer",
            ) from error


def check_teacher(
    context: Context, stage: ChainStage, student: PreTrainedModel, teacher: PreTrainedModel
) -> None:
    """Refuse a teacher that reads other tokens than the student.

    Raises:
        ConfigError: The teacher reads other tokens.
    """
    inputs, given = context.inputs[stage.name], context.given_teacher(stage)
    tokenizer, rows = inputs.tokenizer, inputs.data.splits[stage.task.train]
    key, path = f"{stage.key}.teacher", stage.teacher
    if given:
        key, path = given.key, given.path
    theirs = context.teacher_tokenizer(stage)
    try:
        hf.check_pair(student, teacher, stage.task.kind)
        if theirs is not None:  # else `check_pair` has compared the sizes
            hf.check_vocabularies(tokenizer, theirs)
    except ConfigError as error:
        raise ConfigError(key, path, error.expected, error.hint) from error
    unread = hf.SEGMENTS not in tokenizer.model_input_names
    if hf.accepts_token_type_ids(student) and unread and hf.SEGMENTS in rows.column_names:
        raise ConfigError(
            key,
            path,
            "the teacher and the student read token_type_ids, which the student's tokenizer does "
            "not make",
            "name them in model_input_names of the student's tokenizer_config.json",
        )


def warn_of_unknown_tokens(
    job: Job, task: hf.Task, rows: Dataset, tokenizer: PreTrainedTokenizerBase, sample: int = 1000
) -> None:
    """Warn where most tokens of the first rows are unknown to the tokenizer."""
    tokens = [token for row in rows[:sample]["input_ids"] for token in row]
    unknown = sum(token == tokenizer.unk_token_id for token in tokens) / len(tokens)
    if unknown > 0.5:
        log.warning(
            "model.path=%s: its tokenizer does not know %.0f %% of the tokens of task=%s; take a "
            "model that reads such texts (model=minilm, …)",
            job.model.path,
            100 * unknown,
            task.name,
        )


def warn_of_truncated_rows(task: hf.Task, rows: Dataset, share: float = 0.05) -> None:
    """Warn where many training rows are as long as the task allows, so that texts are cut off."""
    if not isinstance(task.kind, hf.Classification | hf.Regression):
        return  # others pack texts, or divide them into windows
    full = float((row_lengths(rows) >= task.max_length).mean())
    if full >= share:
        log.warning(
            "task.max_length=%d: %.0f %% of the training rows of task=%s are as long, and what "
            "follows is cut off; raise it, up to what the model reads",
            task.max_length,
            100 * full,
            task.name,
        )


def check_token_ids(
    data: hf.TaskData, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str
) -> None:
    """Refuse rows with a token for which the model has no embedding.

    Raises:
        ConfigError: There is one, as after ``tokenizer.add_tokens`` alone.
    """
    size = model.config.vocab_size
    if len(tokenizer) <= size:
        return
    for split, rows in data.splits.items():
        for row in rows["input_ids"]:
            if (largest := max(row)) >= size:
                token = tokenizer.convert_ids_to_tokens(largest)
                raise ConfigError(
                    "model.path",
                    path,
                    f"its tokenizer makes {token!r} of a row of the {split} split, number "
                    f"{largest}, and the model has {size} embeddings",
                    "call model.resize_token_embeddings(len(tokenizer)) and save it again",
                )


def check_lengths(task: hf.Task, data: hf.TaskData, limit: float) -> None:
    """Refuse rows that are longer, with or without padding, than the models' longest input.

    Raises:
        ConfigError: A row is too long.
    """
    if (task.pad_to or 0) > limit:
        raise ConfigError(
            "pad_to",
            task.pad_to,
            f"the model reads {limit} tokens at most",
            "set it to that, or to null",
        )
    if task.max_length > limit:
        for split, rows in data.splits.items():
            if (longest := int(row_lengths(rows).max())) > limit:
                raise ConfigError(
                    "max_length",
                    task.max_length,
                    f"a row of the {split} split has {longest} tokens, the model reads {limit} at "
                    "most",
                    "set it to that, or take a model that reads more (model=…)",
                )
