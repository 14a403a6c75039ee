"""Statistics over seeds: one row per task, method and sparsity, with mean and deviation.

All figures of a sweep are computed here; tables, CSV files and the page only show them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from kd_prune.results import StageResult, is_loss
from kd_prune.sweep.schema import Run, Student

SIZES = ("nonzero", "bytes")
"""Attributes of a row that a metric is compared with on a Pareto front."""


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation over seeds; the deviation of one value is None."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistic:
        """Compute both from one value per seed."""
        values = list(values)
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)

    def text(self, metric: str, *, sign: bool = False) -> str:
        """Format as ``75.3±0.8``: fractions in percent, losses unchanged."""
        scale, digits = (1, 3) if is_loss(metric) else (100, 1)
        mean = f"{scale * self.mean:{'+' if sign else ''}.{digits}f}"
        return mean if self.std is None else f"{mean}±{scale * self.std:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """One metric of the students of a row, and of their teachers.

    Attributes:
        student: The students' metric.
        teacher: Their teachers'; None where a run has no teacher with this metric.
        delta: Student minus its own teacher.
    """

    student: Statistic
    teacher: Statistic | None
    delta: Statistic | None


@dataclass(frozen=True)
class Member:
    """One student of a row, and its run."""

    run: Run
    student: Student


@dataclass(frozen=True, kw_only=True)
class Row:
    """Students of one task, method and target, one per seed.

    Attributes:
        task: Name of the task.
        method: Label, see `kd_prune.sweep.labels`.
        target: Sparsity in scope that was asked for; None: dense students.
        milestone: Whether the students were saved before their run's final sparsity.
        metric: The metric that the sweep compares.
        members: The students.
        metrics: Name → comparison, of every metric that all students have.
        sparsity: Mean share of zeros among the weights in scope.
        model_sparsity: Mean share of zeros among all weights.
        parameters: Mean number of weights.
        nonzero: Mean number of weights that are not zero.
        bytes: Mean size on disk, zeros included; None where it is not known.
        seconds: Stage → mean training time; milestones share the time of their run.
    """

    task: str
    method: str
    target: float | None
    milestone: bool
    metric: str
    members: tuple[Member, ...]
    metrics: Mapping[str, Comparison]
    sparsity: float
    model_sparsity: float
    parameters: int
    nonzero: int
    bytes: int | None
    seconds: Mapping[str, float]

    @property
    def seeds(self) -> int:
        """Number of students, one per seed."""
        return len(self.members)

    @property
    def student(self) -> Statistic:
        """The compared metric of the students."""
        return self.metrics[self.metric].student

    @property
    def teacher(self) -> Statistic | None:
        """The compared metric of their teachers."""
        return self.metrics[self.metric].teacher

    @property
    def delta(self) -> Statistic | None:
        """Difference of students and teachers, run by run."""
        return self.metrics[self.metric].delta


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Statistics of a collection.

    Attributes:
        rows: One per task, method and target.
        repeats: Finished runs left out: a later one has the same task, method, target and seed.
    """

    rows: list[Row]
    repeats: list[Run]


def summarize_runs(runs: Sequence[Run]) -> Summary:
    """Group the students of all runs and compute the statistics of every group.

    Each seed counts once: of runs with the same task, method, target and seed, the one that ended
    last.
    """
    groups: dict[tuple[str, str, float | None, bool, str], dict[int | None, Member]]
    groups = defaultdict(dict)
    repeats = []
    for run in sorted(runs, key=lambda run: (run.ended or "", run.folder)):
        for student in run.students:
            key = (run.task, run.method, student.target, student.milestone, run.monitor)
            group = groups[key]
            if run.seed in group and not student.milestone:
                repeats.append(group[run.seed].run)
            group[run.seed] = Member(run, student)
    rows = [make_row(tuple(members.values())) for members in groups.values()]
    rows.sort(
        key=lambda r: (
            r.task,
            r.method,
            -1 if r.target is None else r.target,
            r.milestone,
            r.metric,
        )
    )
    return Summary(rows=rows, repeats=repeats)


def make_row(members: tuple[Member, ...]) -> Row:
    """Compute the statistics of students that differ in their seed only."""
    run, student = members[0].run, members[0].student
    results = [member.student.result for member in members]
    shared = [name for name in student.result.metrics if all(name in r.metrics for r in results)]
    sizes = [result.bytes for result in results if result.bytes is not None]
    return Row(
        task=run.task,
        method=run.method,
        target=student.target,
        milestone=student.milestone,
        metric=run.monitor,
        members=members,
        metrics={name: compare(members, name) for name in shared},
        sparsity=fmean(result.sparsity for result in results),
        model_sparsity=fmean(result.model_sparsity for result in results),
        parameters=round(fmean(result.parameters for result in results)),
        nonzero=round(fmean(result.nonzero for result in results)),
        bytes=round(fmean(sizes)) if sizes else None,
        seconds=stage_seconds([member.run for member in members]),
    )


def compare(members: Sequence[Member], metric: str) -> Comparison:
    """Compare one metric of the students with their own teachers'."""
    students = [member.student.result.metrics[metric] for member in members]
    teachers = [t for member in members if (t := member.run.teacher.get(metric)) is not None]
    if len(teachers) < len(students):
        return Comparison(Statistic.of(students), None, None)
    deltas = (s - t for s, t in zip(students, teachers, strict=True))
    return Comparison(Statistic.of(students), Statistic.of(teachers), Statistic.of(deltas))


def stages_of(run: Run) -> Mapping[str, StageResult]:
    """Return the stages of a run; none unless it is finished."""
    return run.result.stages if run.result else {}


def stage_seconds(runs: Iterable[Run]) -> dict[str, float]:
    """Compute the mean training time of every stage, over the runs that trained it.

    Runs that found a stage in the cache do not count, so that each training counts once, unless
    none of the runs trained it; a model that was given by a path took 0 seconds.
    """
    own: dict[str, list[float]] = defaultdict(list)
    all_: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, stage in stages_of(run).items():
            all_[name].append(stage.seconds)
            if not stage.reused:
                own[name].append(stage.seconds)
    return {name: fmean(own[name] or found) for name, found in all_.items()}


def teacher_levels(runs: Iterable[Run]) -> dict[str, dict[str, float]]:
    """Compute task → metric → mean over the task's teachers, each of them counted once."""
    values: dict[str, dict[str, set[tuple[int | None, float]]]]
    values = defaultdict(lambda: defaultdict(set))
    for run in runs:
        for name, value in run.teacher.items():
            values[run.task][name].add((run.seed, value))
    return {
        task: {name: fmean(value for _, value in found) for name, found in metrics.items()}
        for task, metrics in values.items()
    }


def dominating(places: Sequence[tuple[float, float]]) -> list[list[int]]:
    """List, for each place (size, metric), the indices of the places that dominate it.

    A place dominates another if it is better in one of the two and worse in none. A place with an
    empty list lies on the Pareto front.

    >>> dominating([(10, 0.8), (20, 0.9), (20, 0.7), (10, 0.8)])
    [[], [], [0, 1, 3], []]
    """
    return [
        [
            i
            for i, (other_size, other_metric) in enumerate(places)
            if other_size <= size
            and other_metric >= metric
            and (other_size < size or other_metric > metric)
        ]
        for size, metric in places
    ]
