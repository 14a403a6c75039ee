"""Job: a chain of stages that ends in the student."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from kd_prune import hf
from kd_prune.distillation import Objective
from kd_prune.errors import ConfigError
from kd_prune.lit import SparsityCallback
from kd_prune.pipeline.rounds import with_rounds
from kd_prune.pipeline.stage import PRETRAINED, STUDENT, TEACHER, ChainStage, Stage, key_of_stage

log = logging.getLogger(__name__)

JOB_KEYS = {
    "task": "task",
    "objective": "distillation",
    "sparsity": "sparsity",
    "callbacks": "callbacks",
    "optimizer": "optimizer",
    "max_epochs": "trainer.max_epochs",
    "max_steps": "trainer.max_steps",
}
"""Setting of a stage → the key that sets it for the student."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of a run.

    The student is the last stage, and `task`, `sparsity`, `distillation`, `optimizer`, `callbacks`
    and the limits of `trainer` are its settings. The teacher is fine-tuned before it on the same
    task.

    Args:
        task: Task of the student, and of every stage that names none.
        model: Pre-trained encoder that stages begin with.
        distillation: Objective of the student.
        trainer: Makes a Lightning Trainer, given callbacks, loggers and limits.
        out: Run folder.
        sparsity: Callback that prunes the student; None: it stays dense.
        teacher: Stage that fine-tunes the teacher.
        student: Further settings of the student's stage; none of those in `JOB_KEYS`.
        stages: Name → further stage before the student. A stage may name earlier ones as its
            `init` or `teacher`.
        optimizer: Optimizer of the student, and of every stage that names none.
        callbacks: Name → further Lightning callback of the student's fit.
        logger: Name → Lightning logger of the student's fit.
        seed: Seed of everything random.
        cache_dir: Folder that keeps stages and tokens between runs.
        ckpt_path: Run folder, or checkpoint of a student's fit, to resume from.
        checkpoint_minutes: Longest time of training between two checkpoints.
        config: The composed configuration as plain data, for the record.

    Raises:
        ConfigError: A value is out of range, a stage has a setting that it cannot have, or stages
            refer to each other in a circle.
    """

    task: hf.Task
    model: hf.PretrainedEncoder
    distillation: Objective
    trainer: Callable[..., L.Trainer]
    out: Path = Path()
    sparsity: SparsityCallback | None = None
    teacher: Stage = field(default_factory=lambda: Stage(max_epochs=3))
    student: Stage = field(default_factory=Stage)
    stages: Mapping[str, Stage] = field(default_factory=dict)
    optimizer: hf.AdamWWithSchedule = field(default_factory=hf.AdamWWithSchedule)
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    logger: Mapping[str, Logger] = field(default_factory=dict)
    seed: int = 0
    cache_dir: str = "~/.cache/kd_prune"
    ckpt_path: str | None = None
    checkpoint_minutes: float = 5.0
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError("seed", self.seed, f"expected a whole number from 0 to {2**32 - 1}")
        if not self.checkpoint_minutes >= 0:
            raise ConfigError(
                "checkpoint_minutes", self.checkpoint_minutes, "expected a number from 0"
            )
        for name in (PRETRAINED, TEACHER, STUDENT):
            if name in self.stages:
                raise ConfigError(f"stages.{name}", expected="a reserved name; choose another")
        self._check_student()
        for name, stage in {**self.stages, TEACHER: self.teacher}.items():
            if stage.min_retained:
                key = f"{key_of_stage(name)}.min_retained"
                raise ConfigError(key, stage.min_retained, "only the student can have it")
        left_out = self.stages.keys() - self.chain().keys()
        for name in sorted(left_out):
            if self.stages[name].sparsity:
                log.warning(
                    "stages.%s prunes, but is not run: no stage that is run refers to it (init, "
                    "teacher, masks_from)",
                    name,
                )

    def _check_student(self) -> None:
        """Raise ConfigError if the student's stage has a setting that would have no effect."""
        if self.student.path:
            raise ConfigError(
                "student.path",
                self.student.path,
                "the student is always fitted",
                "set student.init to begin with that model, or evaluate it with kd-prune eval",
            )
        for name, key in JOB_KEYS.items():
            if getattr(self.student, name):
                raise ConfigError(f"student.{name}", expected=f"for the student it is {key}")
        if self.student.rounds > 1:
            raise ConfigError(
                "student.rounds",
                self.student.rounds,
                "the student is one fit",
                "find the masks in a stage of several rounds, and set student.masks_from to it",
            )
        if self.task.adds_unlabelled_rows and not self.distillation.needs_teacher:
            key = "augment" if self.task.augment else "unlabelled"
            raise ConfigError(
                f"task.{key}",
                expected="the student learns from labels alone, and these rows have none",
                hint="choose a distillation that reads the teacher, or set it to null",
            )

    def chain(self) -> dict[str, ChainStage]:
        """Return name → stage, with the job's settings filled in, in the order in which they run.

        Every stage comes after those it refers to; the student is last. The teacher is always
        included, because the report compares the student with it. Stages that nothing refers to
        are left out. A stage of several rounds becomes a stage per round.

        Raises:
            ConfigError: Stages refer to each other in a circle, or rounds do not suit a stage.
        """
        student = replace(
            self.student,
            teacher=self.student.teacher or TEACHER,
            objective=self.distillation,
            sparsity=self.sparsity,
            callbacks=self.callbacks,
            optimizer=self.optimizer,
        )
        given = {**self.stages, TEACHER: self.teacher, STUDENT: student}
        stages, named_in_command = with_rounds(given)
        before = {name: stage.references & stages.keys() for name, stage in stages.items()}
        before[STUDENT] |= {TEACHER}
        try:
            order = list(TopologicalSorter(before).static_order())
        except CycleError as error:
            circle = " → ".join(error.args[1])
            raise ConfigError(
                "stages", expected=f"they refer to each other in a circle, {circle}"
            ) from error
        needed, found = {STUDENT}, set[str]()
        while needed:
            found |= needed
            needed = set[str]().union(*(before[name] for name in needed)) - found
        return {
            name: self._filled_in(name, stages[name], named_in_command[name])
            for name in order
            if name in found
        }

    def _filled_in(self, name: str, stage: Stage, named_in_command: str) -> ChainStage:
        return ChainStage.of(
            stage,
            name,
            named_in_command=named_in_command,
            task=stage.task or self.task,
            optimizer=stage.optimizer or self.optimizer,
            seed=self.seed if stage.seed is None else stage.seed,
        )


def cache_folder(cache_dir: str) -> Path:
    """Return the folder that a job's `cache_dir` names, created if needed.

    Raises:
        ConfigError: The folder cannot be created or written to.
    """
    folder = Path(cache_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            "cache_dir",
            cache_dir,
            f"no folder that can be written to ({error.strerror})",
            "name another, or set KD_PRUNE_CACHE",
        ) from error
    return folder
