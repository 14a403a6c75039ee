"""Task: the place of the rows, the columns of text and label, and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kd_prune.errors import UNSET, ConfigError
from kd_prune.hf.augmentation import Augmentation
from kd_prune.hf.kinds import Classification, LanguageModel, TaskKind, Text, kind_name


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: its rows, columns and metrics, and the kind of task it is.

    Args:
        name: Name of the task in results.
        path: Hub id, or a folder that holds a file per split (``train.parquet``, ``.csv``,
            ``.jsonl``, ``.txt``, the last two also as ``.gz``), possibly in a subfolder named
            `subset`. A text file has one row per non-blank line, in the column ``text``. A single
            file, of whatever name, is the training split.
        text: One text column, or two that are read as a pair.
        kind: The kind of task: classification, regression, text without labels, or your own.
        subset: Configuration of the hub data set, or subfolder.
        label: Label column.
        labels: Class names in the order of their indices; None: as the data declare them, or
            their sorted values. Labels in the data are looked up by name (text, the declared name
            of a class label, a whole number such as 1 of ``["1", "2"]``), in whatever case; whole
            numbers that are no such names are indices.
        metrics: Names of metrics (see `kd_prune.metrics`); none where the rows have no labels.
        monitor: The metric that a sweep compares; ``loss`` where there are no metrics.
        train: Split to learn from.
        train_rows: Read the first rows of the training split only; a hub data set or a large file
            is then streamed up to there. None: all.
        validation: Splits to evaluate on; metrics of all but the first have the split's name.
        holdout: Rows at the end of the training split that become the validation split if the data
            set has none; None: a missing validation split is an error.
        max_length: Longest sequence in tokens; the rest is cut off.
        pad_to: Pad every row to this length instead of the batch's longest.
        batch_size: Rows per training batch.
        eval_batch_size: Rows per validation batch.
        files: Split → file name, where the files are not named after their split.
        augment: Copies of the training texts with some words replaced; None: none.
        unlabelled: Files with further texts, in the working folder or in `path`. Augmented copies
            and these texts have no labels: they are training rows of stages with a teacher, of
            which terms that need no labels learn.

    Raises:
        ConfigError: A field does not suit the kind or another field.
    """

    name: str
    path: str
    text: Sequence[str]
    kind: TaskKind = field(default_factory=Classification)
    subset: str | None = None
    label: str = "label"
    labels: Sequence[str] | None = None
    metrics: Sequence[str] = ("accuracy",)
    monitor: str = "accuracy"
    train: str = "train"
    train_rows: int | None = None
    validation: Sequence[str] = ("validation",)
    holdout: int | None = None
    max_length: int = 128
    pad_to: int | None = None
    batch_size: int = 32
    eval_batch_size: int = 128
    files: Mapping[str, str] | None = None
    augment: Augmentation | None = None
    unlabelled: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.text) not in (1, 2):
            raise ConfigError("text", list(self.text), "expected one column or two")
        for key in ("text", "validation"):
            names = list(getattr(self, key))
            if len(set(names)) < len(names):
                raise ConfigError(key, names, "expected each name once")
        if "labels" in self.text:
            raise ConfigError(
                "text", "labels", "the name that targets have in batches", "rename the column"
            )
        if not self.validation:
            raise ConfigError("validation", [], "expected at least one split")
        for key in ("max_length", "batch_size", "eval_batch_size", "holdout", "train_rows"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ConfigError(key, value, "expected at least 1")
        if self.pad_to is not None and self.pad_to < self.max_length:
            raise ConfigError("pad_to", self.pad_to, f"below max_length={self.max_length}")
        for key in ("augment", "unlabelled"):
            if getattr(self, key) and self.kind.missing_label is None:
                kind = kind_name(self.kind)
                raise ConfigError(
                    key,
                    UNSET,
                    f"a task of kind {kind} takes no rows without labels",
                    "leave it out",
                )
        if self.adds_unlabelled_rows and self.train in self.validation:
            raise ConfigError(
                "validation",
                list(self.validation),
                f"rows without labels are added to {self.train}, which cannot be evaluated then",
                "leave it out",
            )
        self.kind.check(self)
        self._check_metrics()

    @property
    def adds_unlabelled_rows(self) -> bool:
        """Whether rows without labels follow the training rows."""
        return bool(self.augment or self.unlabelled)

    def labelled_only(self) -> Task:
        """Return the task without rows that have no labels."""
        return replace(self, augment=None, unlabelled=())

    def _check_metrics(self) -> None:
        """Raise ConfigError unless metrics and monitor suit the kind and each other."""
        suitable, kind = self.kind.metrics, kind_name(self.kind)
        monitors = list(self.metrics) or ["loss"]
        if unsuitable := [name for name in self.metrics if name not in suitable]:
            raise ConfigError(
                "metrics",
                unsuitable[0],
                f"does not suit a task of kind {kind}",
                f"take some of task.metrics=[{','.join(suitable)}] and task.monitor={suitable[0]}"
                if suitable
                else "set task.metrics=[] and task.monitor=loss",
            )
        if self.monitor not in monitors:
            raise ConfigError(
                "monitor",
                self.monitor,
                f"not among metrics={monitors}" if self.metrics else "there are no metrics",
                f"set it to {' or '.join(monitors)}",
            )


def as_text(task: Task) -> Task:
    """Return the same rows as a task of kind `Text`, for objectives that need no labels."""
    kind = Text(pack=getattr(task.kind, "pack", False))
    return replace(task, kind=kind, metrics=[], monitor="loss")


def as_language_model(task: Task) -> Task:
    """Return the same rows as a task of kind `LanguageModel`, in smaller batches for evaluation.

    The logits of one batch are those of every token in both directions.
    """
    kind = LanguageModel(pack=getattr(task.kind, "pack", False))
    batch = min(task.eval_batch_size, 32)
    return replace(
        task,
        kind=kind,
        eval_batch_size=batch,
        metrics=["accuracy", "perplexity"],
        monitor="perplexity",
    )
