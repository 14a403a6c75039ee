"""One run: a teacher, a student pruned while it learns from it, and an honest report."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.hf import models
from kd_prune.lit import History, ResumePoint
from kd_prune.pruning import Scope, SparsityReport
from kd_prune.run.check import (
    Promise,
    check,
    check_metrics,
    check_place,
    student_scope,
    verify,
    verify_history,
    verify_reached,
    verify_retained,
)
from kd_prune.run.checkpoint import checkpoint_file, read_checkpoint, what_it_is_of
from kd_prune.run.fit import evaluate, make_module, make_trainer, on_one_device, together, train
from kd_prune.run.job import Job, cache_folder
from kd_prune.run.milestones import (
    Milestone,
    Milestones,
    bring_milestones,
    clear_results,
    milestone_folder,
)
from kd_prune.run.outcome import Counted, draw_curves, print_summary, versions, write_json
from kd_prune.run.teacher import model_folder, obtain_teacher, teacher_reads_segments

say = rank_zero_only(print)  # of several processes, one speaks


def run(job: Job) -> dict[str, Any] | None:
    """Carry out a job and leave its results in the run folder.

    Where the student's fit takes several processes, each of them comes here; all but the first
    are done when the fit is.

    Returns:
        None in a process other than the first; else what ``result.json`` holds: `task`, `seed`,
        `teacher` and `student` with their metrics, `sparsity` and `model_sparsity` as counted,
        `milestones` likewise, `seconds` per stage, `versions`, `config`.

    Raises:
        ValueError: Something asked for is impossible; raised before anything is trained.
        CheckpointError: `Job.ckpt_path` cannot be gone on from; likewise.
        NonFiniteError: The loss became NaN.
        PromiseError: The finished student is not as sparse as promised (nothing is reported then),
            or retains less than was asked for.
    """
    seconds: dict[str, float] = {}
    if job.ckpt_path:
        job = replace(job, ckpt_path=checkpoint_file(job.ckpt_path))
    job.out.mkdir(parents=True, exist_ok=True)
    cache = cache_folder(job.cache_dir)
    if job.teacher.path:
        path = model_folder(job.teacher.path)
        job = replace(job, teacher=replace(job.teacher, path=path))
    if job.task.regression:
        check_metrics(job.task, num_labels=1)
    with timed(seconds, "data"):
        tokenizer = job.model.tokenizer()
        segments = teacher_reads_segments(job)
        data = hf.load(job.task, tokenizer, cache, segments=segments)
    L.seed_everything(job.seed, verbose=False)
    student = job.model.load(num_labels=data.num_labels)
    length = check(job, data, tokenizer, student)
    about = what_it_is_of(job, data, models.fingerprint(student, tokenizer, head=False))
    checkpoint = read_checkpoint(job.ckpt_path, job, student, about) if job.ckpt_path else None
    if job.ckpt_path and checkpoint:
        check_place(job, checkpoint, length)
        bring_milestones(Path(job.ckpt_path).parent, job.out, checkpoint)
        say(f"Going on after step {checkpoint['global_step']} ({job.ckpt_path})", flush=True)
    scope = student_scope(job, student) if job.sparsity else None
    if job.sparsity and scope:
        job.sparsity.within, job.sparsity.scope = "student", scope  # as DistillModule holds it

    alone = on_one_device(job)
    with timed(seconds, "teacher"):
        teacher, teacher_metrics = obtain_teacher(alone, data, tokenizer, cache)
    if job.student.init == "teacher":
        student.load_state_dict(teacher.state_dict())
    if job.student.dropout is not None:
        models.set_dropout(student, job.student.dropout)
    start = SparsityReport.count(student, scope.select(student).keys()).sparsity if scope else None
    fit = fit_student(job, data, tokenizer, student, teacher, checkpoint, about)
    if not fit.first:
        return None
    verify_history(fit.history)
    seconds["student"] = fit.seconds
    folder = job.out / "student"
    hf.save(student, tokenizer, folder, data.labels)

    pruner = job.sparsity.pruner if job.sparsity else None
    if pruner:
        verify_reached(pruner, job.out)
    with timed(seconds, "evaluation"):
        promise = Promise.of(pruner) if pruner else None
        student_metrics, report = judge(alone, data, tokenizer, folder, scope, promise)
        report.write_csv(job.out / "sparsity.csv")
        on_the_way = [
            judge_milestone(alone, data, tokenizer, scope, found) for found in fit.milestones
        ]
    draw_curves(
        fit.history.rows,
        job.out / "curves.png",
        monitor=job.task.monitor,
        teacher=teacher_metrics[job.task.monitor],
        start=start,
        milestones=on_the_way,
    )
    result = {
        "task": job.task.name,
        "seed": job.seed,
        "data": data.rows[:12],
        "teacher": teacher_metrics,
        "student": student_metrics,
        "sparsity": report.sparsity,
        "model_sparsity": report.model_sparsity,
        "parameters": report.parameters,
        "nonzero": report.nonzero,
        "milestones": on_the_way,
        "bytes": (folder / "model.safetensors").stat().st_size,
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "versions": versions(),
        "config": dict(job.config),
    }
    write_json(result, job.out / "result.json")
    print_summary(result, Counted.of(teacher, teacher_metrics["path"]), job.out)
    monitor = job.task.monitor
    verify_retained(job, student_metrics[monitor], teacher_metrics[monitor])
    return result


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a student's fit leaves besides the student.

    Attributes:
        history: Its curves.
        milestones: The students on its way.
        seconds: How long it trained, before it was resumed too.
        first: Whether this is the first process of those that trained it.
    """

    history: History
    milestones: list[Milestone]
    seconds: float
    first: bool


def fit_student(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    checkpoint: Mapping[str, Any] | None,
    about: Mapping[str, Any],
) -> Fit:
    """Train the student in place, pruning it meanwhile; `about` goes into its checkpoints."""
    L.seed_everything(job.seed, verbose=False)
    for model in (student, teacher):
        models.prepare(model, job.distillation.requires)
    module = make_module(job, data, student.train(), teacher=teacher, objective=job.distillation)
    history = History(job.out / "metrics.csv")
    milestones = None
    if job.sparsity and job.sparsity.schedule and job.sparsity.schedule.milestones:

        def save(sparsity: float) -> None:
            hf.save(student, tokenizer, milestone_folder(job.out, sparsity), data.labels)

        milestones = Milestones(job.sparsity, save)
    resume = ResumePoint(job.out / "last.ckpt", job.checkpoint_minutes, about)

    # Not before: what is refused, by Lightning too, leaves an earlier run's results alone. A fit
    # with nothing left to do has no start; of others the end comes second.
    clear = functools.cache(lambda: clear_results(job, checkpoint))
    callbacks = [
        LambdaCallback(on_train_start=lambda *_: clear(), on_fit_end=lambda *_: clear()),
        *([job.sparsity] if job.sparsity else []),
        *([milestones] if milestones else []),
        *job.callbacks.values(),
        history,
        resume,
    ]
    trainer = make_trainer(job, callbacks, logger=list(job.logger.values()) or False)
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(job.config))
    with together(trainer):
        train(
            trainer,
            module,
            *hf.loaders(job.task, data, tokenizer, seed=job.seed),
            stage="the student",
            key="optimizer",
            saved=resume.path,
            going_on=job.ckpt_path if checkpoint else None,
        )
    return Fit(
        history=history,
        milestones=milestones.reached if milestones else [],
        seconds=resume.seconds,
        first=trainer.is_global_zero,
    )


def judge(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    scope: Scope | None,
    promise: Promise | None,
) -> tuple[dict[str, float], SparsityReport]:
    """Metrics and zeros of a student as it is on disk.

    Raises:
        PromiseError: It is not as sparse as promised.
    """
    student = hf.Pretrained(path=str(folder)).load(num_labels=data.num_labels, head=True)
    report = SparsityReport.count(student, scope.select(student).keys() if scope else ())
    if promise:
        verify(promise, report, folder)
    return evaluate(job, data, tokenizer, student, role="student"), report


def judge_milestone(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    scope: Scope | None,
    milestone: Milestone,
) -> dict[str, Any]:
    """A milestone's entry in ``result.json``."""
    folder = milestone_folder(job.out, milestone.sparsity)
    metrics, report = judge(job, data, tokenizer, folder, scope, milestone.promise)
    return {
        "target": milestone.sparsity,
        "step": milestone.step,
        "student": metrics,
        "sparsity": report.sparsity,
        "model_sparsity": report.model_sparsity,
        "parameters": report.parameters,
        "nonzero": report.nonzero,
        "path": str(folder.relative_to(job.out)),
    }


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long a stage took."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
