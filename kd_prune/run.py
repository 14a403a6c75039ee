"""One run: a teacher, a student pruned while it learns from it, and an honest report."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from filelock import FileLock
from filelock import Timeout as LockTaken
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from kd_prune import hf
from kd_prune.distillation import HardLabels, Objective
from kd_prune.hf import models
from kd_prune.lit import (
    DistillModule,
    History,
    ResumePoint,
    SparsityCallback,
    metric_collection,
)
from kd_prune.outcome import draw_curves, print_summary, write_json
from kd_prune.pruning import SparsityReport

Metrics = dict[str, Any]  # name → value, and the teacher's path


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where the teacher comes from: fine-tuned models are kept and found again.

    Args:
        path: Folder or hub id of a model fine-tuned on the task; None: fine-tune `Job.model`.
        max_epochs: Epochs of fine-tuning.
        optimizer: Optimizer of fine-tuning.
    """

    path: str | None = None
    max_epochs: int = 3
    optimizer: hf.FineTuning = field(default_factory=hf.FineTuning)


@dataclass(frozen=True, kw_only=True)
class Student:
    """How the student begins.

    Args:
        init: `pretrained` (the weights of `Job.model`) or `teacher` (the teacher's).
    """

    init: str = "pretrained"

    def __post_init__(self) -> None:
        """Check the choice."""
        if self.init not in ("pretrained", "teacher"):
            raise ValueError(f"student.init={self.init}: expected pretrained or teacher")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a run is made of.

    Args:
        task: What is learnt.
        model: The pre-trained encoder, of the student and of a teacher that is fine-tuned here.
        teacher: Where the teacher comes from.
        student: How the student begins.
        sparsity: What prunes the student; None leaves it dense.
        distillation: What the student learns from.
        optimizer: The student's optimizer.
        trainer: Makes a Lightning Trainer, given callbacks, loggers and max_epochs.
        callbacks: Name → further Lightning callback, for the student's fit.
        logger: Name → Lightning logger, for the student's fit.
        seed: Seed of everything random.
        cache_dir: Where teachers and tokens are kept between runs.
        ckpt_path: Checkpoint of a student's fit to go on from.
        checkpoint_minutes: Longest time of training between two checkpoints.
        out: The run folder.
        config: The composed configuration as plain data, for the record.
    """

    task: hf.Task
    model: hf.Pretrained
    distillation: Objective
    trainer: Callable[..., L.Trainer]
    out: Path = Path()
    sparsity: SparsityCallback | None = None
    teacher: Teacher = Teacher()
    student: Student = Student()
    optimizer: hf.FineTuning = field(default_factory=hf.FineTuning)
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    logger: Mapping[str, Logger] = field(default_factory=dict)
    seed: int = 0
    cache_dir: str = "~/.cache/kd_prune"
    ckpt_path: str | None = None
    checkpoint_minutes: float = 5.0
    config: Mapping[str, Any] = field(default_factory=dict)


def run(job: Job) -> dict[str, Any]:
    """Carry out a job and leave its results in the run folder.

    Returns:
        What ``result.json`` holds: `task`, `seed`, `teacher` and `student` with their metrics,
        `sparsity` and `model_sparsity` as counted, `seconds` per stage, `versions`, `config`.

    Raises:
        ValueError: Something asked for is impossible; raised before anything is trained.
        NonFiniteError: The loss became NaN.
        RuntimeError: The finished student is not as sparse as promised.
    """
    seconds: dict[str, float] = {}
    job.out.mkdir(parents=True, exist_ok=True)
    cache = Path(job.cache_dir).expanduser()
    with timed(seconds, "data"):
        tokenizer = job.model.tokenizer()
        data = hf.load(job.task, tokenizer, cache)
    L.seed_everything(job.seed, verbose=False)
    student = job.model.load(num_labels=data.num_labels)
    checkpoint = read_checkpoint(job.ckpt_path, job, student) if job.ckpt_path else None
    check(job, data, tokenizer, student)

    with timed(seconds, "teacher"):
        teacher, teacher_metrics = obtain_teacher(job, data, tokenizer, cache)
    if job.student.init == "teacher":
        student.load_state_dict(teacher.state_dict())
    with timed(seconds, "student"):
        history = fit_student(job, data, tokenizer, student, teacher, checkpoint)
    folder = job.out / "student"
    hf.save(student, tokenizer, folder, data.labels)

    with timed(seconds, "evaluation"):
        reloaded = hf.Pretrained(path=str(folder)).load(num_labels=data.num_labels)
        student_metrics = evaluate(job, data, tokenizer, reloaded)
    scope = set(job.sparsity.scope.select(reloaded)) if job.sparsity and job.sparsity.scope else ()
    report = SparsityReport.count(reloaded, scope)
    verify(job, report)
    report.write_csv(job.out / "sparsity.csv")
    draw_curves(
        history.rows,
        job.out / "curves.png",
        monitor=job.task.monitor,
        teacher=teacher_metrics[job.task.monitor],
    )
    result = {
        "task": job.task.name,
        "seed": job.seed,
        "teacher": teacher_metrics,
        "student": student_metrics,
        "sparsity": report.sparsity,
        "model_sparsity": report.model_sparsity,
        "parameters": report.parameters,
        "nonzero": report.nonzero,
        "bytes": (folder / "model.safetensors").stat().st_size,
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "versions": versions(),
        "config": dict(job.config),
    }
    write_json(result, job.out / "result.json")
    print_summary(result, job.out)
    return result


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note how long a stage took."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    packages = ("kd_prune", "torch", "lightning", "transformers", "datasets", "torchmetrics")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def check(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
) -> None:
    """Refuse what cannot work, before anything is trained.

    Runs student and teacher (the student again where the teacher is yet to be trained) on a few
    rows, so that every term meets the activations it will get.
    """
    metric_collection(job.task.metrics, data.num_labels)
    train, _ = hf.loaders(job.task, data, tokenizer, seed=job.seed)
    if job.sparsity:
        if job.sparsity.scope is None:
            job.sparsity.scope = job.model.scope or models.encoder_scope(student)
        job.sparsity.scope.select(student)
        try:
            job.sparsity.plan(optimizer_steps(job.trainer(logger=False), len(train)))
        except ValueError as error:
            raise ValueError(f"sparsity.{error}") from error
    teacher = student
    if job.teacher.path:
        teacher = load_teacher(job.teacher.path, data)
        models.check_pair(student, teacher)
    requires = job.distillation.requires
    for model in (student, teacher):
        models.prepare(model, requires)
        model.train(False)
    rows = data.splits[job.task.train]
    batch = train.collate_fn([rows[i] for i in range(min(2, len(rows)))])
    with torch.no_grad():
        ours, theirs = (models.forward(model, batch, requires) for model in (student, teacher))
        job.distillation(ours, theirs, batch)


def optimizer_steps(trainer: L.Trainer, batches: int) -> int:
    """Optimizer steps of a fit with this trainer over `batches` per epoch."""
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    per_epoch = -(-batches // trainer.accumulate_grad_batches)
    limits = []
    if trainer.max_epochs not in (None, -1):
        limits.append(per_epoch * trainer.max_epochs)
    if trainer.max_steps != -1:
        limits.append(trainer.max_steps)
    if not limits:
        raise ValueError("trainer.max_epochs=-1: a run needs an end; set it, or trainer.max_steps")
    return min(limits)


def read_checkpoint(path: str, job: Job, student: PreTrainedModel) -> dict[str, Any]:
    """Read a checkpoint of a student's fit, without unpickling anything but plain data.

    Raises:
        ValueError: It is missing, truncated, or of something else.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"ckpt_path={path}: no such file") from error
    except Exception as error:  # torch raises a different type for each way to be broken
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"ckpt_path={path}: truncated or no checkpoint ({reason})") from error
    state = checkpoint.get("state_dict", {}) if isinstance(checkpoint, dict) else {}
    wanted = {f"student.{name}": tensor.shape for name, tensor in student.state_dict().items()}
    if {name: t.shape for name, t in state.items() if name.startswith("student.")} != wanted:
        raise ValueError(f"ckpt_path={path}: not a checkpoint of this student (other weights)")
    pruned = "SparsityCallback" in checkpoint.get("callbacks", {})
    if pruned != (job.sparsity is not None):
        kinds = ("dense", "pruned")
        raise ValueError(
            f"ckpt_path={path}: a checkpoint of a {kinds[pruned]} fit, and this one is "
            f"{kinds[not pruned]}; take the last.ckpt of a run folder"
        )
    return dict(checkpoint)


def make_trainer(job: Job, callbacks: Sequence[Callback], **settings: Any) -> L.Trainer:
    """A trainer that shows progress and writes nothing by itself."""
    return job.trainer(
        callbacks=list(callbacks),
        default_root_dir=job.out,
        enable_checkpointing=True,
        use_distributed_sampler=False,  # the batch sampler shares out the batches itself
        **settings,
    )


def fit_student(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    checkpoint: Mapping[str, Any] | None,
) -> History:
    """Train the student in place, pruning it meanwhile; return its curves."""
    L.seed_everything(job.seed, verbose=False)
    for model in (student, teacher):
        models.prepare(model, job.distillation.requires)
    module = DistillModule(
        student.train(),
        teacher=teacher,
        objective=job.distillation,
        forward=models.forward,
        optimizer=job.optimizer,
        metrics=metric_collection(job.task.metrics, data.num_labels),
        validation=tuple(job.task.validation),
    )
    history = History(job.out / "metrics.csv")
    callbacks = [
        *([job.sparsity] if job.sparsity else []),
        *job.callbacks.values(),
        history,
        ResumePoint(job.out / "last.ckpt", job.checkpoint_minutes),
    ]
    train, validation = hf.loaders(job.task, data, tokenizer, seed=job.seed)
    trainer = make_trainer(job, callbacks, logger=list(job.logger.values()) or False)
    trainer.fit(
        module,
        train,
        list(validation.values()),
        ckpt_path=job.ckpt_path if checkpoint else None,
        weights_only=True,
    )
    return history


def load_teacher(path: str, data: hf.TaskData) -> PreTrainedModel:
    """A model that was fine-tuned on the task.

    Raises:
        ValueError: It cannot be reached, was not fine-tuned, or on other labels; it would be given
            a random head.
    """
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise models.unreachable("teacher.path", path, error) from error
    if not any("ForSequenceClassification" in name for name in config.architectures or ()):
        raise ValueError(
            f"teacher.path={path}: {', '.join(config.architectures or ['it'])} has no "
            "classification head; fine-tune it on the task, or set teacher.path=null"
        )
    if config.num_labels != data.num_labels:
        raise ValueError(
            f"teacher.path={path}: the teacher has {config.num_labels} labels, the task "
            f"{data.num_labels}; take a teacher that was fine-tuned on this task"
        )
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if set(names) == set(data.labels) and names != list(data.labels):
        raise ValueError(
            f"teacher.path={path}: the teacher's labels are in the order {names[:5]}, the task's "
            f"in the order {list(data.labels)[:5]}; set task.labels to the teacher's"
        )
    return hf.Pretrained(path=path).load(num_labels=data.num_labels)


def obtain_teacher(
    job: Job, data: hf.TaskData, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> tuple[PreTrainedModel, Metrics]:
    """The teacher and its metrics: loaded, found again, or fine-tuned under a lock."""
    if job.teacher.path:
        model = load_teacher(job.teacher.path, data)
        return model, {**evaluate(job, data, tokenizer, model), "path": job.teacher.path}
    L.seed_everything(job.seed, verbose=False)
    model = job.model.load(num_labels=data.num_labels)
    key = teacher_key(job, data, models.fingerprint(model, tokenizer))
    folder = cache / "teachers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder.with_suffix(".lock")):
        if not (folder / "metrics.json").is_file():
            fine_tune(job, data, tokenizer, model, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    found = hf.Pretrained(path=str(folder)).load(num_labels=data.num_labels)
    return found, {**metrics, "path": str(folder)}


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold a file lock, saying so where another process has it; a dead process holds none."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except LockTaken:
        print("Another run is fine-tuning this teacher; waiting for it.", flush=True)
        lock.acquire()
    with lock:
        lock.release()
        yield


def teacher_key(job: Job, data: hf.TaskData, model: str) -> str:
    """Hash of everything that a fine-tuned teacher depends on."""
    trainer = dict(job.config.get("trainer", {}))
    for of_the_student in ("max_epochs", "max_steps"):
        trainer.pop(of_the_student, None)
    depends = {
        "data": data.fingerprint,
        "model": model,
        "max_epochs": job.teacher.max_epochs,
        "optimizer": repr(job.teacher.optimizer),
        "batch": (job.task.batch_size, job.task.pad_to),
        "trainer": trainer,
        "metrics": list(job.task.metrics),
        "seed": job.seed,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


def fine_tune(
    job: Job,
    data: hf.TaskData,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    folder: Path,
) -> None:
    """Fine-tune `model` on the task and leave it in `folder`; goes on where it was interrupted."""
    module = DistillModule(
        model.train(),
        objective=Objective({"hard_labels": HardLabels()}),
        forward=models.forward,
        optimizer=job.teacher.optimizer,
        metrics=metric_collection(job.task.metrics, data.num_labels),
        validation=tuple(job.task.validation),
    )
    resume = folder.with_suffix(".ckpt")
    train, validation = hf.loaders(job.task, data, tokenizer, seed=job.seed)
    trainer = make_trainer(
        job,
        [ResumePoint(resume, job.checkpoint_minutes)],
        logger=False,
        max_epochs=job.teacher.max_epochs,
        max_steps=-1,
    )
    print(f"Fine-tuning the teacher on {job.task.name} ({folder.name})", flush=True)
    trainer.fit(
        module,
        train,
        list(validation.values()),
        ckpt_path=str(resume) if resume.is_file() else None,
        weights_only=True,
    )
    hf.save(model, tokenizer, folder, data.labels)
    write_json(evaluate(job, data, tokenizer, model), folder / "metrics.json")
    resume.unlink(missing_ok=True)


def evaluate(
    job: Job, data: hf.TaskData, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Metrics:
    """Metrics of a model on the validation splits, by name."""
    module = DistillModule(
        model,
        objective=Objective({"hard_labels": HardLabels()}),
        forward=models.forward,
        optimizer=job.optimizer,
        metrics=metric_collection(job.task.metrics, data.num_labels),
        validation=tuple(job.task.validation),
    )
    _, validation = hf.loaders(job.task, data, tokenizer, seed=job.seed)
    trainer = make_trainer(job, [], logger=False, enable_model_summary=False)
    rows = trainer.validate(module, list(validation.values()), verbose=False)
    values = {name: value for row in rows for name, value in row.items()}
    return {name.removeprefix("val/").split("/dataloader")[0]: v for name, v in values.items()}


def verify(job: Job, report: SparsityReport) -> None:
    """Raise RuntimeError unless the student, read back from disk, is as sparse as promised."""
    if job.sparsity is None:
        return
    promised = job.sparsity.pruned
    counted = sum(tensor.zeros for tensor in report.tensors if tensor.in_scope)
    if counted < promised or abs(report.sparsity - job.sparsity.schedule.final) > 1e-3:
        raise RuntimeError(
            f"the student in {job.out} has {counted} zeros in scope where the masks prune "
            f"{promised} and sparsity.final={job.sparsity.schedule.final} was asked for"
        )
