"""Schema of a collection: runs as a sweep reads them from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd_prune.results import ModelResult, RunResult, Status, target_sparsity


@dataclass(frozen=True)
class Student:
    """One student of a run: the final one, or one saved at a milestone.

    Attributes:
        target: Sparsity in scope that was asked for; None: a dense student.
        milestone: Whether it was saved before the run reached its final sparsity.
        result: Its metrics and counted weights.
    """

    target: float | None
    milestone: bool
    result: ModelResult


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder.

    Attributes:
        folder: Path of the folder.
        state: One of `kd_prune.results.STATES`, as found now; the recorded one may be out of date.
        reason: Why the run is not finished.
        status: Content of ``status.json``; None where it is missing or cannot be read.
        result: Content of ``result.json``; None unless the run is finished.
        method: Label that distinguishes the run's method from others on the same task.
        curves: Rows of ``metrics.csv``.
        tensors: Rows of ``sparsity.csv``.
    """

    folder: Path
    state: str
    reason: str | None = None
    status: Status | None = None
    result: RunResult | None = None
    method: str = ""
    curves: tuple[Mapping[str, float], ...] = ()
    tensors: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def config(self) -> Mapping[str, Any]:
        """Resolved configuration; empty where it is not known."""
        known = (self.status and self.status.config) or (self.result and self.result.config)
        return known if isinstance(known, Mapping) else {}

    @property
    def choices(self) -> Mapping[str, str]:
        """Option that was chosen in every group of the configuration."""
        return (self.status and self.status.choices) or {}

    @property
    def refused(self) -> bool:
        """Whether a setting was refused before the student's training began."""
        refused = self.status is not None and self.status.refused
        return refused and self.state == "failed" and not self.curves

    @property
    def task(self) -> str:
        """Name of the student's task; ``?`` where it is not known."""
        known = (self.status and self.status.task) or (self.result and self.result.task)
        return str(known or self._of_task("name") or "?")

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        record = self.status if self.status and self.status.seed is not None else self.result
        return record.seed if record else None

    @property
    def monitor(self) -> str:
        """Metric that the sweep compares: the configured one, or the student's first."""
        wanted = str((self.status and self.status.monitor) or self._of_task("monitor") or "")
        if self.result is None:
            return wanted
        metrics = self.result.student.metrics
        return next((m for m in (wanted, self.result.monitor) if m in metrics), next(iter(metrics)))

    @property
    def ended(self) -> str | None:
        """Time when the run ended, ISO 8601."""
        return self.status.ended if self.status else None

    @property
    def data(self) -> str | None:
        """Hash of the task's rows."""
        return self.result.data if self.result else None

    @property
    def target(self) -> float | None:
        """Sparsity that was asked for; None: a dense student, or not known."""
        return target_sparsity(self.config)

    @property
    def teacher(self) -> Mapping[str, float]:
        """Metrics of the teacher; empty where the run has none."""
        teacher = self.result.teacher if self.result else None
        return teacher.metrics if teacher else {}

    @property
    def students(self) -> tuple[Student, ...]:
        """Students of a finished run, the final one last."""
        if self.result is None:
            return ()
        saved = (Student(found.target, True, found) for found in self.result.milestones)
        return (*saved, Student(self.target, False, self.result.student))

    def _of_task(self, key: str) -> Any:
        task = self.config.get("task")
        return task.get(key) if isinstance(task, Mapping) else None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Runs below some folders.

    Attributes:
        runs: Every run, by folder.
        broken: Files that could not be read, and the reason; they are not in `runs`.
    """

    runs: list[Run]
    broken: list[tuple[Path, str]]
