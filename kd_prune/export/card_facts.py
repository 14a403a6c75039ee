"""Facts of a model card: what a saved folder is, from the results of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_prune.results import ModelResult, RunResult
from kd_prune.sweep.statistics import Statistic


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of a card, over seeds.

    Attributes:
        metric: Name of the metric.
        student: The model's.
        teacher: The teachers'; None where a run has none.
        delta: Student minus its own teacher; likewise.
    """

    metric: str
    student: Statistic
    teacher: Statistic | None
    delta: Statistic | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card says.

    Attributes:
        form: Format of the folder; ``student`` for the plain folder that a run saves.
        options: Options of the format that were chosen, as a user writes them.
        architecture: Class of the model in transformers.
        name: Folder or id of the exported model, for a model without a run.
        results: Results of the run, then of runs with other seeds; empty: not known.
        students: The model's metrics and counts in these runs.
        counted: Counts of the exported model.
        bytes: Size of the folder's weights.
        tokens: Rows of the token embeddings, if the vocabulary was trimmed.
    """

    form: str
    options: Sequence[str] = ()
    architecture: str
    name: str
    results: Sequence[RunResult] = ()
    students: Sequence[ModelResult] = ()
    counted: ModelResult
    bytes: int
    tokens: int | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """Configuration of the run; empty where it is not known."""
        return self.results[0].config if self.results else {}

    @property
    def task(self) -> Mapping[str, Any]:
        """Settings of the task; empty where they are not known."""
        task = self.config.get("task")
        return task if isinstance(task, dict) else {}

    @property
    def base_model(self) -> str | None:
        """Hub id of the pre-trained model; None for a local or unknown one."""
        return self.results[0].hub_ids.get("model.path") if self.results else None

    @property
    def hub_dataset(self) -> str | None:
        """Hub id of the task's rows; None for local or unknown ones."""
        return self.results[0].hub_ids.get("task.path") if self.results else None

    @property
    def distilled(self) -> bool:
        """Whether the student learnt from its teacher, not from labels alone."""
        teacher = self.results[0].teacher if self.results else None
        return bool(teacher and {*weighted_terms(self.config)} - {"hard_labels"})

    @property
    def title(self) -> str:
        """Name of the model: task, pre-trained model, sparsity."""
        if not self.results:
            return Path(self.name).name
        parts = [self.results[0].task, (self.base_model or "").rpartition("/")[2]]
        percent = 100 * self.counted.sparsity
        shown = f"{percent:.0f}" if percent < 99.5 else f"{percent:.4g}"
        sparse = f"sparse{shown}" if percent else "dense"
        return "-".join(filter(None, [*parts, sparse]))

    def statistics(self) -> list[MetricRow]:
        """Return the metrics that all students have, and their teachers', one row per metric."""
        rows = []
        for metric in self.students[0].metrics if self.students else ():
            if any(metric not in student.metrics for student in self.students):
                continue
            pairs = [
                (student.metrics[metric], teacher.metrics.get(metric) if teacher else None)
                for student, result in zip(self.students, self.results, strict=True)
                for teacher in [result.teacher]
            ]
            teachers = [theirs for _, theirs in pairs if theirs is not None]
            complete = len(teachers) == len(pairs)
            rows.append(
                MetricRow(
                    metric=metric,
                    student=Statistic.of(ours for ours, _ in pairs),
                    teacher=Statistic.of(teachers) if complete else None,
                    delta=Statistic.of(
                        ours - theirs for ours, theirs in pairs if theirs is not None
                    )
                    if complete
                    else None,
                )
            )
        return rows


def weighted_terms(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the loss terms whose weight is not 0."""
    distillation = config.get("distillation")
    terms = distillation.get("terms") if isinstance(distillation, dict) else None
    found = terms.items() if isinstance(terms, dict) else ()
    return [n for n, term in found if not isinstance(term, dict) or term.get("weight", 1)]
