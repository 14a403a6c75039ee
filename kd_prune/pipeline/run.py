"""Run: fit the stages of a job in order, evaluate the student and write the report."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import LambdaCallback
from transformers import PreTrainedModel

from kd_prune import hf
from kd_prune.export.run_cards import hub_ids, write_cards
from kd_prune.lit import History, ResumePoint
from kd_prune.lit.progress import RunLength
from kd_prune.pipeline.context import Context
from kd_prune.pipeline.evaluation import evaluate, model_result
from kd_prune.pipeline.fingerprint import versions
from kd_prune.pipeline.fitting import Fit, fit_stage
from kd_prune.pipeline.job import Job, cache_folder
from kd_prune.pipeline.messages import say
from kd_prune.pipeline.milestones import Milestones, copy_milestones, milestone_folder
from kd_prune.pipeline.models import initial_model, stage_scope, teacher_model
from kd_prune.pipeline.preflight import check_stage, check_student_task
from kd_prune.pipeline.processes import check_shared
from kd_prune.pipeline.reporting import draw_curves, print_summary
from kd_prune.pipeline.resume_check import (
    check_resume_step,
    checkpoint_file,
    read_checkpoint,
    run_fingerprint,
)
from kd_prune.pipeline.run_folder import clear_results
from kd_prune.pipeline.stage import STUDENT, TEACHER
from kd_prune.pipeline.stage_cache import obtain_stage
from kd_prune.pipeline.trainer_checks import checked_trainer, warn_of_slow_precision
from kd_prune.pipeline.verification import (
    ExpectedSparsity,
    verify_final_sparsity,
    verify_retained,
    verify_sparsity,
)
from kd_prune.pruning import Scope, SparsityReport
from kd_prune.results import RESULT_FILE, MilestoneResult, ModelResult, RunResult, StageResult


def run(job: Job) -> RunResult | None:
    """Run a job's stages and write the results to the run folder.

    If the student's fit uses several processes, each of them calls this function. The first one
    fits the other stages and evaluates; the others take part in the student's fit and return.

    Returns:
        The content of ``result.json``; None in a process other than the first.

    Raises:
        ConfigError: A setting cannot work; raised before anything is trained.
        CheckpointError: `Job.ckpt_path` cannot be resumed; raised before anything is trained.
        NonFiniteError: A loss became NaN.
        VerificationError: The finished student has fewer zeros than planned (then there is no
            report), or a smaller share of its teacher's metric than `min_retained`.
    """
    seconds: dict[str, float] = {}
    check_student_task(job.task)
    if job.ckpt_path:
        job = replace(job, ckpt_path=checkpoint_file(job.ckpt_path))
    job.out.mkdir(parents=True, exist_ok=True)
    trainer = checked_trainer(job, {})
    warn_of_slow_precision(trainer)
    context = Context(job, cache_folder(job.cache_dir), job.chain(), trainer.is_global_zero)
    if trainer.num_nodes > 1:
        check_shared(context)
    with timed(seconds, "data"):
        context.load_inputs()
    lengths = {name: check_stage(context, stage) for name, stage in context.chain.items()}
    fingerprint, checkpoint = prepare_resume(context, lengths[STUDENT])
    for name, stage in context.chain.items():
        if name != STUDENT:
            context.outcomes[name] = obtain_stage(context, stage)
    fit = fit_student(context, checkpoint, fingerprint)
    if not fit.fit.first_process:
        return None
    with timed(seconds, "evaluation"):
        student_result = evaluate_student(context, fit)
        milestones = [evaluate_milestone(context, fit, found) for found in fit.milestones.saved]
    task = context.chain[STUDENT].task
    stages = {name: outcome.result for name, outcome in context.outcomes.items()}
    result = RunResult(
        task=task.name,
        seed=job.seed,
        data=context.inputs[STUDENT].data.rows[:12],
        monitor=task.monitor,
        stages={**stages, STUDENT: student_result},
        milestones=milestones,
        seconds={name: round(value, 2) for name, value in seconds.items()},
        versions=versions(),
        config=dict(job.config),
        hub_ids=hub_ids(job.config),
        teacher_stage=name_of_compared_teacher(context),
    )
    result.write(job.out)  # first, so that no failure of a drawing loses it
    teacher = value_to_retain(context)
    draw_curves(
        fit.history.rows,
        job.out / "curves.png",
        monitor=task.monitor,
        teacher=teacher,
        start=fit.initial_sparsity,
        milestones=milestones,
    )
    write_cards(result, job.out)
    print_summary(result, job.out)
    if teacher is not None:
        verify_retained(
            job.student.min_retained,
            task.monitor,
            student_result.metrics[task.monitor],
            teacher,
            job.out,
        )
    return result


def prepare_resume(
    context: Context, length: RunLength | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the fingerprint of the student's fit, and the checkpoint to resume or None.

    Raises:
        CheckpointError: The checkpoint cannot be resumed.
    """
    job = context.job
    student = initial_model(context, context.chain[STUDENT])
    fingerprint = run_fingerprint(context, student)
    if not job.ckpt_path:
        return fingerprint, None
    checkpoint = read_checkpoint(job.ckpt_path, context, student, fingerprint)
    check_resume_step(context, checkpoint, length)
    copy_milestones(Path(job.ckpt_path).parent, job.out, checkpoint)
    say(f"Resuming after step {checkpoint['global_step']} ({job.ckpt_path})")
    return fingerprint, checkpoint


def value_to_retain(context: Context) -> float | None:
    """Return the value of the student's `monitor` that its teacher has; None if not known."""
    name = name_of_compared_teacher(context)
    metrics = context.outcomes[name].result.metrics if name else {}
    return metrics.get(context.chain[STUDENT].task.monitor)


def name_of_compared_teacher(context: Context) -> str | None:
    """Return the name of the stage that made the teacher in the reports; None: there is none.

    It is the student's own teacher, or the stage `TEACHER` where that one has no value of the
    student's `monitor`, as a teacher of another task. Of a saved model nothing is known.
    """
    stage = context.chain[STUDENT]
    if stage.teacher and stage.teacher not in context.outcomes:
        return None
    there = [name for name in (stage.teacher, TEACHER) if name and name in context.outcomes]
    monitor = stage.task.monitor
    measured = [name for name in there if monitor in context.outcomes[name].result.metrics]
    return next(iter([*measured, *there]), None)


@dataclass(frozen=True, kw_only=True)
class StudentFit:
    """Result of the student's fit besides the student.

    Attributes:
        fit: Time and pruning callback.
        history: Curves of the fit.
        milestones: Students saved at milestones.
        scope: Scope of pruning; None: nothing was pruned.
        initial_sparsity: Sparsity counted before the first step.
    """

    fit: Fit
    history: History
    milestones: Milestones
    scope: Scope | None
    initial_sparsity: float | None


def fit_student(
    context: Context, checkpoint: Mapping[str, Any] | None, fingerprint: Mapping[str, Any]
) -> StudentFit:
    """Fit the student and save it in the run folder.

    Args:
        context: The run.
        checkpoint: Content of the checkpoint that is resumed.
        fingerprint: Fingerprint to store in the fit's checkpoints.
    """
    job, inputs, stage = context.job, context.inputs[STUDENT], context.chain[STUDENT]
    student, teacher = initial_model(context, stage), teacher_model(context, stage)
    scope = stage_scope(context, stage, student) if stage.sparsity else None
    initial_sparsity = None
    if scope:
        initial_sparsity = SparsityReport.count(student, scope.select(student).keys()).sparsity

    def save(folder: Path) -> None:
        hf.save(student, inputs.tokenizer, folder, kind=stage.task.kind, labels=inputs.data.labels)

    milestones = Milestones(lambda sparsity: save(milestone_folder(job.out, sparsity)))
    sparsity = stage.sparsity and stage.sparsity.replace(submodule="student", scope=scope)
    if sparsity and sparsity.schedule and sparsity.schedule.milestones:
        sparsity = milestones.connect(sparsity)
    # Earlier results are removed only when training starts, so that a refused command keeps them.
    # A resumed fit without remaining steps calls no `on_train_start`, so its end removes them.
    clear = functools.cache(lambda: clear_results(job, checkpoint))
    history = History(job.out / "metrics.csv")
    fit = fit_stage(
        context,
        stage,
        student,
        teacher,
        resume_point=ResumePoint(job.out / "last.ckpt", job.checkpoint_minutes, fingerprint),
        resume_from=job.ckpt_path if checkpoint else None,
        sparsity=sparsity,
        callbacks=[
            LambdaCallback(on_train_start=lambda *_: clear(), on_fit_end=lambda *_: clear()),
            milestones,
            *job.callbacks.values(),
            history,
        ],
    )
    if fit.first_process:
        # Of an earlier student, which is replaced: a kill before the new result leaves no pair of
        # one run's student and another run's result.
        (job.out / RESULT_FILE).unlink(missing_ok=True)
        save(job.out / "student")
    return StudentFit(
        fit=fit,
        history=history,
        milestones=milestones,
        scope=scope,
        initial_sparsity=initial_sparsity,
    )


def evaluate_student(context: Context, fit: StudentFit) -> StageResult:
    """Evaluate the saved student and write ``sparsity.csv``.

    Raises:
        VerificationError: The student has fewer zeros than planned.
    """
    job, task, folder = context.job, context.chain[STUDENT].task, context.job.out / "student"
    pruner = fit.fit.sparsity.pruner if fit.fit.sparsity else None
    if pruner:
        verify_final_sparsity(pruner, job.out)
    expected = ExpectedSparsity.of(pruner) if pruner else None
    found, report = evaluate_folder(context, folder, fit.scope, expected)
    report.write_csv(job.out / "sparsity.csv")
    return StageResult(
        **asdict(found), task=task.name, monitor=task.monitor, seconds=round(fit.fit.seconds, 2)
    )


def evaluate_milestone(context: Context, fit: StudentFit, milestone: Any) -> MilestoneResult:
    """Evaluate a student saved at a milestone."""
    folder = milestone_folder(context.job.out, milestone.sparsity)
    found, _ = evaluate_folder(context, folder, fit.scope, milestone.expected)
    return MilestoneResult(**asdict(found), target=milestone.sparsity, step=milestone.step)


def evaluate_folder(
    context: Context, folder: Path, scope: Scope | None, expected: ExpectedSparsity | None
) -> tuple[ModelResult, SparsityReport]:
    """Load a student from `folder`; compute its metrics and count its zeros.

    Raises:
        VerificationError: The student has fewer zeros than expected.
    """
    stage, inputs = context.chain[STUDENT], context.inputs[STUDENT]
    student: PreTrainedModel = hf.PretrainedEncoder(path=str(folder)).load(
        kind=stage.task.kind, num_outputs=inputs.data.num_outputs, head=True
    )
    names = set(scope.select(student)) if scope else set[str]()
    report = SparsityReport.count(student, names)
    if expected:
        verify_sparsity(expected, report, folder)
    metrics = evaluate(context.job, stage, inputs, student, role="student")
    shown = str(folder.relative_to(context.job.out))
    return model_result(student, names, metrics, str(folder), shown), report


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Store the duration of the block in ``seconds[name]``."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
