"""Cache of the stages before the student: each is fitted once, under a lock, for all runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from filelock import Timeout as LockTaken
from transformers import PreTrainedModel

from kd_prune import hf
from kd_prune.errors import ConfigError
from kd_prune.json_schema import SchemaError, read_json, write_json
from kd_prune.lit import ResumePoint
from kd_prune.pipeline.context import Context, GivenModel, Outcome
from kd_prune.pipeline.evaluation import evaluate, model_result
from kd_prune.pipeline.fingerprint import (
    describe_each,
    describe_stage,
    digest,
    trainer_settings,
    versions,
)
from kd_prune.pipeline.fitting import Fit, fit_stage, single_device_job
from kd_prune.pipeline.messages import say
from kd_prune.pipeline.models import (
    initial_model,
    load_fine_tuned,
    stage_scope,
    teacher_model,
)
from kd_prune.pipeline.resume_check import load_checkpoint, load_if_valid
from kd_prune.pipeline.stage import ChainStage
from kd_prune.pipeline.verification import (
    ExpectedSparsity,
    verify_final_sparsity,
    verify_sparsity,
)
from kd_prune.plain_settings import UnknownPartError
from kd_prune.pruning import SparsityReport
from kd_prune.results import StageResult
from kd_prune.source_hash import source_hash

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""Time after which a process says that it waits."""
CODE = (
    *("hf", "distillation", "lit", "metrics.py"),
    *(f"pipeline/{name}.py" for name in ("fitting", "models", "rounds", "evaluation")),
)
"""Parts of kd_prune that the outcome of every stage depends on."""
RECORD = "stage.json"
"""File in a finished stage's folder that contains its `StageResult`."""


def obtain_stage(context: Context, stage: ChainStage) -> Outcome:
    """Return the outcome of a stage before the student: given, cached, or fitted now.

    Raises:
        ConfigError: A given model does not suit the task.
        NonFiniteError: A loss became NaN.
        VerificationError: The outcome has fewer zeros than planned.
    """
    if stage.path:
        return given_model(context, stage)
    student, teacher = initial_model(context, stage), teacher_model(context, stage)
    folder = stage_folder(context, stage, student, teacher)
    if not context.first_process:
        return awaited_stage(context, stage, folder)
    if found := found_stage(context, stage, folder):
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder.with_name(f"{folder.name}.lock"), stage.name):
        if found := found_stage(context, stage, folder):
            return found
        say(f"Fitting {stage.title} on {stage.task.name} ({folder.name})")
        return fit_and_save(context, stage, folder, student, teacher)


def found_stage(context: Context, stage: ChainStage, folder: Path) -> Outcome | None:
    """Read a finished stage as `read_stage` does, and say that it is not fitted."""
    if found := read_stage(context, stage, folder):
        title = stage.title.removeprefix("the ")
        place = "cache" if folder.is_relative_to(context.cache) else "run folder"
        say(f"{title[0].upper()}{title[1:]} from the {place} ({folder.name})")
        return found
    return None


def awaited_stage(context: Context, stage: ChainStage, folder: Path) -> Outcome:
    """Wait for a stage that the job's first process fits or finds.

    If that process fails, its launcher ends this one. Both say the name of the folder: on nodes
    with different kinds of CPU a new head, and with it the name, would differ.
    """
    begun, said = time.monotonic(), False
    while not (found := read_stage(context, stage, folder)):
        time.sleep(POLL_SECONDS)
        if not said and time.monotonic() - begun > PATIENCE_SECONDS:
            said = True
            log.info("Waiting for %s, which the first process fits (%s)", stage.title, folder.name)
    return found


def given_model(context: Context, stage: ChainStage) -> Outcome:
    """Evaluate the model that `Stage.path` gives; return it as the stage's outcome."""
    given, inputs = GivenModel.of(stage.path or "", f"{stage.key}.path"), context.inputs[stage.name]
    path = given.path
    # Without a head for the task it cannot be evaluated, and the first process reports.
    if stage.objective is not None or not context.first_process:
        return Outcome(path, StageResult(metrics={}, path=path, reused=True))
    model = load_fine_tuned(given, stage.task, inputs.data)
    metrics = evaluate(context.job, stage, inputs, model, role=stage.name)
    found = model_result(model, hf.encoder_weights(model), metrics, path, path)
    return Outcome(
        path,
        StageResult(**asdict(found), task=stage.task.name, monitor=stage.task.monitor, reused=True),
    )


def stage_folder(
    context: Context, stage: ChainStage, student: PreTrainedModel, teacher: PreTrainedModel | None
) -> Path:
    """Return the folder of a stage's outcome, named by the hash of everything it depends on.

    A stage with a part whose description may differ between processes is kept in the run folder,
    for runs in that folder whose other settings are the same.
    """
    try:
        return context.cache / "stages" / stage_key(context, stage, student, teacher)
    except UnknownPartError as error:
        say(f"The {stage.name} is not shared between runs: {error}")
        known = stage_key(context, stage, student, teacher, skip_unknown=True)
        settings = digest([known, composed_settings(context.job.config, stage)])
        return context.job.out / "stages" / f"{stage.name}-{settings}"


def composed_settings(config: Mapping[str, Any], stage: ChainStage) -> Any:
    """Return the settings of a stage and of the task as Hydra composed them, classes by name."""
    found: Any = config
    for name in stage.key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return [found, config.get("task")]


def stage_key(
    context: Context,
    stage: ChainStage,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    *,
    skip_unknown: bool = False,
) -> str:
    """Hash everything that a stage's outcome depends on.

    Raises:
        UnknownPartError: A part's description may differ between processes, and is not skipped.
    """
    inputs = context.inputs[stage.name]
    task, trainer = stage.task, single_device_job(context.job).trainer
    settings = describe_stage(stage, skip_unknown=skip_unknown)
    for replaced_by_hashes in ("init", "teacher", "masks_from"):
        settings.pop(replaced_by_hashes)
    weights = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
    return digest(
        {
            "stage": settings,
            "scope": str(context.job.model.scope) if stage.sparsity else None,
            "task": describe_each({"kind": task.kind}, skip_unknown=skip_unknown),
            "data": inputs.data.fingerprint,
            "models": {
                role: hf.model_fingerprint(model, inputs.tokenizer)
                for role, model in weights.items()
            },
            "batch": (task.batch_size, task.pad_to),
            "metrics": list(task.metrics),
            "trainer": trainer_settings(trainer, skip_unknown=skip_unknown),
            "limits": limits_from_trainer(context, stage),
            "versions": versions(),
            "code": source_hash(*CODE, *(["pruning"] if stage.sparsity else [])),
        }
    )


def limits_from_trainer(context: Context, stage: ChainStage) -> int | None:
    """Return the epochs of the job's trainer for a stage without own limits, else None."""
    if stage.max_epochs is not None or stage.max_steps is not None:
        return None
    return context.job.trainer(logger=False).max_epochs


def read_stage(context: Context, stage: ChainStage, folder: Path) -> Outcome | None:
    """Read a finished stage; None if it is missing or damaged, the latter with a warning."""
    if not (folder / RECORD).is_file():
        return None
    try:
        result = StageResult.from_json(read_json(folder / RECORD))
        with torch.random.fork_rng(devices=[]):  # a missing head is drawn at random
            load_outcome(context, stage, folder)
    except (ConfigError, SchemaError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        log.warning("%s: a damaged stage, which is fitted once more (%s)", folder, reason)
        return None
    task = stage.task  # its name may differ from that in the run that fitted the stage
    found = replace(result, path=str(folder), reused=True, task=task.name, monitor=task.monitor)
    return Outcome(str(folder), found)


def load_outcome(context: Context, stage: ChainStage, folder: Path) -> PreTrainedModel:
    """Load the model, with its head, that a stage saved in `folder`.

    Raises:
        ConfigError: The model cannot be read.
    """
    task = stage.task
    return hf.PretrainedEncoder(path=str(folder)).load(
        kind=task.kind,
        num_outputs=context.inputs[stage.name].data.num_outputs,
        head=True,
        key=stage.key,
    )


def fit_and_save(
    context: Context,
    stage: ChainStage,
    folder: Path,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
) -> Outcome:
    """Fit a stage and save its outcome in `folder`; an interrupted fit is resumed."""
    inputs = context.inputs[stage.name]
    task = stage.task
    scope = stage_scope(context, stage, student) if stage.sparsity else None
    sparsity = stage.sparsity and stage.sparsity.replace(submodule="student", scope=scope)
    checkpoint = folder.with_name(f"{folder.name}.ckpt")
    resume_from = load_if_valid(checkpoint)
    if resume_from:
        step = load_checkpoint(resume_from)["global_step"]
        say(f"Resuming {stage.title} after step {step}.")
    fit: Fit = fit_stage(
        context,
        stage,
        student,
        teacher,
        resume_point=ResumePoint(checkpoint, context.job.checkpoint_minutes),
        resume_from=resume_from,
        sparsity=sparsity,
        callbacks=list(stage.callbacks.values()),
    )
    hf.save(student, inputs.tokenizer, folder, kind=task.kind, labels=inputs.data.labels)
    model = load_outcome(context, stage, folder)
    names = set(scope.select(model)) if scope else hf.encoder_weights(model)
    if fit.sparsity and fit.sparsity.pruner:
        verify_final_sparsity(fit.sparsity.pruner, folder)
        expected = ExpectedSparsity.of(fit.sparsity.pruner)
        verify_sparsity(expected, SparsityReport.count(model, names), folder)
    metrics = evaluate(
        context.job, stage, inputs, model, role=stage.name, teacher=teacher, objective=fit.objective
    )
    found = model_result(model, names, metrics, str(folder), str(folder))
    result = StageResult(
        **asdict(found), task=task.name, monitor=task.monitor, seconds=round(fit.seconds, 2)
    )
    write_json(asdict(result), folder / RECORD)
    checkpoint.unlink(missing_ok=True)
    return Outcome(str(folder), result)


@contextmanager
def waiting_lock(path: Path, name: str) -> Iterator[None]:
    """Hold a file lock; log a message if another process holds it and this one waits."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except LockTaken:
        say(f"Another run is fitting this {name}; waiting for it.")
        lock.acquire()
    with lock:
        lock.release()  # `with` acquired it once more
        yield
