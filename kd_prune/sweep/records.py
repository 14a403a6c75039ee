"""Records: what is known of runs and of the students that they made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Point:
    """One student: a run's last, or one that it saved on the way.

    Attributes:
        target: Sparsity in scope that was asked for; None: a dense student.
        milestone: Whether it was saved on the way to a higher sparsity.
        student: Its metrics.
        sparsity: Share of the weights in scope that are zero, counted.
        model_sparsity: Of all its weights, likewise.
        parameters: How many weights it has.
        nonzero: How many of them are not zero.
    """

    target: float | None
    milestone: bool
    student: Mapping[str, float]
    sparsity: float
    model_sparsity: float
    parameters: int
    nonzero: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder.

    Attributes:
        folder: Where it lies.
        state: `finished`, `failed`, `running`, `interrupted` or `pruned` (by a search).
        reason: Why it is not finished.
        task: Name of the task.
        seed: Its seed.
        monitor: The task's headline metric.
        method: What tells it apart from other runs on its task, but for sparsity and seed.
        choices: Hydra's group choices.
        config: Resolved configuration.
        ended: When it ended, ISO 8601.
        data: Hash of its task's rows as its model reads them.
        teacher: The teacher's metrics.
        points: Its students, the last one last; none unless it is finished.
        bytes: Size of the student's weights on disk.
        seconds: Stage → seconds.
        curves: Rows of ``metrics.csv``.
        tensors: Rows of ``sparsity.csv``.
    """

    folder: Path
    state: str
    reason: str | None = None
    task: str = ""
    seed: int | None = None
    monitor: str = ""
    method: str = ""
    choices: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    ended: str | None = None
    data: str | None = None
    teacher: Mapping[str, float] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    curves: tuple[Mapping[str, float], ...] = ()
    tensors: tuple[Mapping[str, Any], ...] = ()

    @property
    def target(self) -> float | None:
        """Sparsity asked for; None: dense, or not known."""
        sparsity = self.config.get("sparsity")
        final = sparsity.get("final") if isinstance(sparsity, Mapping) else None
        number = isinstance(final, (int, float)) and math.isfinite(final)
        return final if number else None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What was found.

    Attributes:
        runs: Every run, by folder.
        broken: Files that could not be read, and why; they count for nothing.
    """

    runs: list[Run]
    broken: list[tuple[Path, str]]
