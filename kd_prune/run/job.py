"""The job: everything a run is made of, checked as it is put together."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from kd_prune import hf
from kd_prune.distillation import Objective
from kd_prune.lit import SparsityCallback


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where the teacher comes from: fine-tuned models are kept and found again.

    Args:
        path: Folder (a run folder too) or hub id of a model fine-tuned on the task; None: fine-tune
            `Job.model`.
        max_epochs: Epochs of fine-tuning.
        batch_size: Rows per step of fine-tuning; None: the task's.
        optimizer: Optimizer of fine-tuning.
    """

    path: str | None = None
    max_epochs: int = 3
    batch_size: int | None = None
    optimizer: hf.FineTuning = field(default_factory=hf.FineTuning)

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.max_epochs < 1:
            raise ValueError(f"teacher.max_epochs={self.max_epochs}: expected a number above 0")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"teacher.batch_size={self.batch_size}: expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Student:
    """How the student begins, and what is asked of it.

    Args:
        init: `pretrained` (the weights of `Job.model`) or `teacher` (the teacher's).
        dropout: Probability of every dropout while the student learns; None: the model's own.
        min_retained: The run fails unless the finished student has this share of the teacher's
            value of the task's `monitor`; 0 asks for nothing.
    """

    init: str = "pretrained"
    dropout: float | None = None
    min_retained: float = 0.0

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.init not in ("pretrained", "teacher"):
            raise ValueError(f"student.init={self.init}: expected pretrained or teacher")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"student.dropout={self.dropout}: expected a fraction in [0, 1)")
        if not 0.0 <= self.min_retained <= 1.0:
            raise ValueError(f"student.min_retained={self.min_retained}: expected a share, 0 to 1")


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
        ckpt_path: Run folder, or checkpoint of a student's fit, to go on from.
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

    def __post_init__(self) -> None:
        """Check what every part of the run takes for granted."""
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: expected a whole number from 0 to {2**32 - 1}")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(
                f"checkpoint_minutes={self.checkpoint_minutes}: expected a number from 0"
            )


def cache_folder(cache_dir: str) -> Path:
    """The folder that a job's `cache_dir` names, made if it is not there.

    Raises:
        ValueError: It cannot be made, or not be written to.
    """
    folder = Path(cache_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(
            f"cache_dir={cache_dir}: no folder that can be written to ({error.strerror}); name "
            "another, or set KD_PRUNE_CACHE"
        ) from error
    return folder
