"""Tasks: where the rows are, which columns are text, which is the label, how they are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """A text classification or regression task.

    Args:
        name: What it is called in results.
        path: Hub id, or a folder that holds a file per split (``train.parquet``, ``.csv``,
            ``.jsonl``), possibly in a subfolder named `subset`.
        text: One text column, or two that are read as a pair.
        subset: Configuration of the hub data set, or subfolder.
        label: Label column.
        labels: Class names in the order of their indices; None: as the data declare them, or
            their sorted values. Labels in the data are looked up by name (text, what a class
            label is declared to mean, a whole number such as 1 of ``["1", "2"]``), in whatever
            case; whole numbers that are no such names are indices. Empty for regression.
        regression: Whether the label is a number to be predicted.
        metrics: Names of metrics (see `kd_prune.lit.metrics`).
        monitor: The one metric a sweep looks at.
        train: Split to learn from.
        validation: Splits to judge by; the first is reported, others with their name.
        max_length: Longest sequence in tokens; the rest is cut off.
        pad_to: Pad every row to this length instead of the batch's longest.
        batch_size: Rows per training batch.
        eval_batch_size: Rows per validation batch.
        files: Split → file name, where the files are not called after their split.
    """

    name: str
    path: str
    text: Sequence[str]
    subset: str | None = None
    label: str = "label"
    labels: Sequence[str] | None = None
    regression: bool = False
    metrics: Sequence[str] = ("accuracy",)
    monitor: str = "accuracy"
    train: str = "train"
    validation: Sequence[str] = ("validation",)
    max_length: int = 128
    pad_to: int | None = None
    batch_size: int = 32
    eval_batch_size: int = 128
    files: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Check what can be known without the data."""
        if len(self.text) not in (1, 2):
            raise ValueError(f"task.text={list(self.text)}: expected one column or two")
        for key in ("text", "validation"):
            names = list(getattr(self, key))
            if len(set(names)) < len(names):
                raise ValueError(f"task.{key}={names}: expected each name once")
        if self.labels and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(
                f"task.labels={list(self.labels)}: expected two names or more, each once"
            )
        if self.monitor not in self.metrics:
            raise ValueError(
                f"task.monitor={self.monitor}: not among task.metrics={list(self.metrics)}; "
                "set it to one of them"
            )
        for key in ("max_length", "batch_size", "eval_batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"task.{key}={getattr(self, key)}: expected at least 1")
        if self.pad_to is not None and self.pad_to < self.max_length:
            raise ValueError(
                f"task.pad_to={self.pad_to} is below task.max_length={self.max_length}"
            )
        if not self.validation:
            raise ValueError("task.validation=[]: expected at least one split")
