"""Schema of a run's records, ``result.json`` and ``status.json``; without torch and Hydra."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kd_prune.json_schema import SchemaError, mapping_at, read_json, restore, write_json

RESULT_FILE = "result.json"
STATUS_FILE = "status.json"
EXPORT_FILE = "kd_prune.json"
"""File of an exported folder: what `kd-prune predict` has to know of the task."""
DENSE = "kd_prune.pipeline.dense"
"""Target of ``sparsity=none``, which takes the settings of pruning and prunes nothing."""
LOSSES = ("loss", "perplexity")
"""Metrics that are better if lower, and that are not fractions."""
STATES = ("running", "finished", "failed", "interrupted", "stopped")
"""States of a run; `stopped`: a search ended a trial that was not worth finishing."""


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """Metrics and counted weights of one saved model.

    Attributes:
        metrics: Name → value, fractions.
        sparsity: Share of the weights in scope that are zero.
        model_sparsity: Share of all weights that are zero.
        parameters: Number of weights.
        nonzero: Number of weights that are not zero.
        bytes: Size of the weights' files; None for a model that is not on this disk.
        path: Folder or hub id of the model; relative to the run folder if it is inside.
    """

    metrics: Mapping[str, float]
    sparsity: float = 0.0
    model_sparsity: float = 0.0
    parameters: int = 0
    nonzero: int = 0
    bytes: int | None = None
    path: str = ""

    def __post_init__(self) -> None:
        """Check that every figure is a finite number."""
        numbers = {
            f.name: getattr(self, f.name) for f in fields(self) if f.type in ("float", "int")
        }
        if self.bytes is not None:
            numbers["bytes"] = self.bytes
        for name, value in {**self.metrics, **numbers}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise SchemaError(f"{name} is {value!r}, no number")
            if not math.isfinite(value):
                raise SchemaError(f"{name} is {value!r}, no finite number")


@dataclass(frozen=True, kw_only=True)
class StageResult(ModelResult):
    """Outcome of one stage of a job.

    Attributes:
        task: Name of the stage's task.
        monitor: The metric that models of the task are compared by.
        seconds: Training time; 0 for a model that was given.
        reused: Whether the model was found in the cache or given, so that this run did not train
            it.
    """

    task: str = ""
    monitor: str = ""
    seconds: float = 0.0
    reused: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StageResult:
        """Restore an outcome from the content of its file.

        Raises:
            SchemaError: A value is missing or of the wrong kind.
        """
        return restore(cls, values)


@dataclass(frozen=True, kw_only=True)
class MilestoneResult(ModelResult):
    """Metrics and counted weights of a student that was saved at a milestone.

    Attributes:
        target: Sparsity in scope that was asked for.
        step: Optimizer steps before the student was saved.
    """

    target: float
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Result of a finished run, the content of ``result.json``.

    Attributes:
        task: Name of the student's task.
        seed: Seed of the run.
        data: Short hash of the task's rows.
        monitor: The metric that a sweep compares.
        stages: Name → outcome of every stage, in the order in which they ran; the student is last.
        milestones: Students saved at milestones.
        seconds: Other times than training: ``data`` and ``evaluation``.
        versions: Package → version.
        config: The resolved configuration.
        teacher_stage: Name of the stage whose outcome the student is compared with; None: there is
            none, as where the student's teacher is a saved model.
        hub_ids: ``model.path`` and ``task.path`` → id of the Hub, where they are no local folders.
    """

    task: str
    seed: int | None
    data: str
    monitor: str
    stages: Mapping[str, StageResult]
    milestones: Sequence[MilestoneResult] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    hub_ids: Mapping[str, str] = field(default_factory=dict)
    teacher_stage: str | None = "teacher"

    def __post_init__(self) -> None:
        """Check that there is a student with metrics."""
        if "student" not in self.stages:
            raise SchemaError("it has no stage named student")
        if not self.student.metrics:
            raise SchemaError("its student has no metric")

    @property
    def student(self) -> StageResult:
        """Outcome of the student's stage, the last one."""
        return self.stages["student"]

    @property
    def teacher(self) -> StageResult | None:
        """Outcome of the student's teacher; None where no stage of the job made one."""
        return self.stages.get(self.teacher_stage) if self.teacher_stage else None

    def write(self, folder: Path) -> None:
        """Write ``result.json`` atomically."""
        write_json(asdict(self), folder / RESULT_FILE)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunResult:
        """Restore a result from the content of its file.

        Raises:
            SchemaError: A value is missing or of the wrong kind.
        """
        stages = mapping_at(values, "stages")
        return restore(
            cls,
            values,
            stages={name: restore(StageResult, stage) for name, stage in stages.items()},
            milestones=tuple(restore(MilestoneResult, m) for m in values.get("milestones", ())),
        )

    @classmethod
    def read(cls, folder: Path) -> RunResult:
        """Read ``result.json`` of a run folder.

        Raises:
            OSError: The file cannot be read.
            SchemaError: The file contains no result, or an incomplete one.
        """
        return cls.from_json(read_json(folder / RESULT_FILE))


@dataclass(frozen=True, kw_only=True)
class Status:
    """State of a run, in ``status.json``.

    Attributes:
        state: One of `STATES`.
        reason: Why the run is not finished.
        task: Name of the student's task.
        seed: Seed of the run.
        monitor: The metric that a sweep compares.
        choices: Hydra's group → option.
        overrides: Overrides of the command.
        config: The resolved configuration; None where it cannot be resolved.
        cwd: Folder that the command was given in, which relative paths in `config` begin at.
        started: Time when the run began, ISO 8601.
        ended: Time when the run ended, ISO 8601.
        host: Machine that the run uses.
        pid: Id of the run's process on that machine.
        refused: Whether the run failed because a setting cannot work (`ConfigError`).
    """

    state: str
    reason: str | None = None
    task: str | None = None
    seed: int | None = None
    monitor: str | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    config: Mapping[str, Any] | None = None
    cwd: str | None = None
    started: str | None = None
    ended: str | None = None
    host: str | None = None
    pid: int | None = None
    refused: bool = False

    def write(self, folder: Path) -> None:
        """Write ``status.json`` atomically."""
        write_json(asdict(self), folder / STATUS_FILE)

    @classmethod
    def read(cls, folder: Path) -> Status | None:
        """Read ``status.json`` of a run folder; None where there is none.

        Raises:
            OSError: The file cannot be read.
            SchemaError: The file contains no status, or an incomplete one.
        """
        try:
            return restore(cls, read_json(folder / STATUS_FILE))
        except FileNotFoundError:
            return None


def is_loss(metric: str) -> bool:
    """Return whether a lower value of a metric is better, also for one named ``<split>/loss``.

    >>> is_loss("test/loss"), is_loss("accuracy")
    (True, False)
    """
    return metric.rpartition("/")[2] in LOSSES


def target_sparsity(config: Mapping[str, Any]) -> float | None:
    """Return the sparsity that a configuration asks for; None: a dense student, or not known.

    >>> target_sparsity({"sparsity": {"final": 0.9}})
    0.9
    >>> target_sparsity({"sparsity": {"_target_": "kd_prune.pipeline.dense", "final": 0.9}})
    """
    sparsity = config.get("sparsity")
    if not isinstance(sparsity, Mapping) or sparsity.get("_target_") == DENSE:
        return None
    final = sparsity.get("final")
    return final if isinstance(final, (int, float)) and math.isfinite(final) else None


def run_of(path: Path) -> Path:
    """Return the run folder of ``<run>/student`` or ``<run>/milestones/0.5``, else the path.

    An export next to the student, ``<run>/student-packed``, belongs to the run as well.

    >>> run_of(Path("/runs/a/milestones/0.5")) == run_of(Path("/runs/a/student"))
    True
    >>> run_of(Path("/runs/a/student-packed")) == run_of(Path("/runs/a/student"))
    True
    """
    path = path.expanduser().resolve()
    if path.name == "student" or path.name.startswith("student-"):
        return path.parent
    return path.parent.parent if path.parent.name == "milestones" else path


def recorded_scope(run: Path) -> set[str]:
    """Read the names of a run's parameters in scope from ``sparsity.csv``; none without it."""
    try:
        with (run / "sparsity.csv").open(newline="") as rows:
            return {row["name"] for row in csv.DictReader(rows) if row["in_scope"] == "True"}
    except (OSError, KeyError, ValueError, csv.Error):
        return set()
