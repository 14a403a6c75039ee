"""Labels of a data set: its classes, and the class index or number of every row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from datasets import ClassLabel, Dataset

from kd_prune.errors import ConfigError
from kd_prune.hf.columns import TEXT_TYPES, column_type, column_values

LABEL_TYPES = (*TEXT_TYPES, "int", "uint", "float", "decimal", "bool", "null")
MANY_CLASSES = 100


def check_label_column(rows: Dataset, split: str, column: str) -> None:
    """Raise ConfigError unless the split has a label column of numbers or text."""
    dtype = column_type(rows, split, "label", column)
    if not dtype.startswith(LABEL_TYPES):
        raise ConfigError(
            "label",
            column,
            f"the {split} split holds {dtype} there, not numbers or text",
            "name another column",
        )


def class_label_names(rows: Dataset, column: str) -> tuple[str, ...]:
    """Return the names that a split declares for its labels (`ClassLabel`); empty if none."""
    feature = rows.features[column]
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def class_names(
    train: Dataset, split: str, column: str, names: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names of the classes in the order of their indices.

    Args:
        train: Rows of the training split.
        split: Name of that split, for errors.
        column: Label column.
        names: The names, if the task sets them.

    Raises:
        ConfigError: The column's values are no classes, or fewer than two.
    """
    if names is not None:
        return tuple(names)
    if declared := class_label_names(train, column):
        return declared
    found = set(column_values(train, column))
    values = {value for value in found if value is not None and value == value}
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise ConfigError(
            "label",
            column,
            "the values are fractional numbers",
            "use task/kind=regression, or name another column",
        )
    if any(isinstance(value, str) for value in values):
        classes = sorted(str(value) for value in values if value != "")
    elif values <= {False, True} and any(isinstance(value, bool) for value in values):
        classes = [str(value) for value in sorted(values)]
    else:  # 1.0 is class 1; a negative number marks a row without a label
        classes = [str(int(value)) for value in sorted(values) if value >= 0]
    if len(classes) > max(MANY_CLASSES, len(train) // 2):
        raise ConfigError(
            "label",
            column,
            f"{len(classes)} classes in {len(train)} rows",
            "name another column, or use task/kind=regression",
        )
    if len(classes) < 2:
        raise ConfigError(
            "label",
            column,
            f"{len(classes)} class in the {split} split; a classification needs two",
            "name them in task.labels, or use task/kind=regression",
        )
    return tuple(classes)


@dataclass(frozen=True)
class Classes:
    """The classes of a task, and how labels in the data refer to them.

    Attributes:
        names: Names of the classes in the order of their indices.
        declared: Names that the training split declares for whole numbers (`ClassLabel`); empty if
            it declares none.
        labels_are_names: Whether whole numbers are looked up by name (stars 1 … 5); else they are
            class indices.
    """

    names: tuple[str, ...]
    declared: tuple[str, ...] = ()
    labels_are_names: bool = False

    @cached_property
    def exact(self) -> dict[str, int]:
        """Index of each name."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def folded(self) -> dict[str, int]:
        """Index of each name in lower case; empty where two names differ in case alone."""
        folded = {name.strip().casefold(): i for i, name in enumerate(self.names)}
        return folded if len(folded) == len(self.names) else {}

    def find(self, name: str | None) -> int | None:
        """Return the index of the class of that name, or None."""
        if name is None:
            return None
        return self.exact.get(name, self.folded.get(name.strip().casefold()))

    @classmethod
    def find_in(
        cls, train: Dataset, split: str, column: str, names: Sequence[str] | None
    ) -> Classes:
        """Find the classes in the training split; arguments as for `class_names`."""
        classes = cls(
            class_names(train, split, column, names), declared=class_label_names(train, column)
        )
        values = set(column_values(train, column))
        numbers = {classes.name(value) for value in values if not isinstance(value, str)} - {None}
        if (
            not numbers
        ):  # text only: whole numbers in other splits are names if the names are digits
            return replace(classes, labels_are_names=any(n.isdigit() for n in classes.names))
        return replace(
            classes, labels_are_names=any(classes.find(name) is not None for name in numbers)
        )

    def name(self, value: Any, declared: tuple[str, ...] = ()) -> str | None:
        """Return the class name that a label stands for, or None.

        Args:
            value: The label.
            declared: Names that the label's own split declares.
        """
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool) and self.find(str(value)) is not None:
            return str(value)
        if finite_number(value) is None or value != int(value):
            return None
        meanings = declared or self.declared
        if not meanings:
            return str(int(value))
        return meanings[int(value)] if value in range(len(meanings)) else None

    def index(self, value: Any, declared: tuple[str, ...] = ()) -> int | None:
        """Return the class index of a label, or None; arguments as for `name`."""
        if self.labels_are_names or isinstance(value, str):
            return self.find(self.name(value, declared))
        if value is None or value not in range(len(self.names)):  # NaN is in no range, 1.0 is
            return None
        return int(value)


def class_targets(rows: Dataset, split: str, column: str, classes: Classes) -> list[int]:
    """Return the class index of every row.

    Raises:
        ConfigError: A label is missing or is none of the classes.
    """
    declared = class_label_names(rows, column)
    return _targets(
        rows,
        split,
        column,
        lambda value: classes.index(value, declared),
        lambda value: (
            f"not one of the {len(classes.names)} classes {list(classes.names)[:5]}",
            "set task.labels, or pick a split that has labels",
        ),
    )


def number_targets(rows: Dataset, split: str, column: str) -> list[float]:
    """Return the label of every row as a float.

    Raises:
        ConfigError: A label is missing or not a finite number.
    """
    return _targets(
        rows,
        split,
        column,
        finite_number,
        lambda value: ("regression needs finite numbers", "remove such rows"),
    )


def _targets(
    rows: Dataset,
    split: str,
    column: str,
    convert: Callable[[Any], Any],
    reason: Callable[[Any], tuple[str, str]],
) -> list[Any]:
    values = column_values(rows, column)
    targets: dict[Any, Any] = dict.fromkeys(values)  # each distinct value is converted once
    for value in targets:
        target = convert(value)
        if target is None:
            row = next(i for i, other in enumerate(values) if other is value or other == value)
            raise label_error(column, f"row {row} of the {split} split", value, *reason(value))
        targets[value] = target
    return [targets[value] for value in values]


def label_error(column: str, row: str, value: Any, reason: str, hint: str) -> ConfigError:
    """Return the error for a label that cannot be converted."""
    if value is None or value != value or value == "":
        return ConfigError(
            "label",
            column,
            f"{row} has no label",
            "remove such rows, or pick a split that has labels",
        )
    return ConfigError("label", column, f"{row} is {value!r}: {reason}", hint)


def finite_number(value: Any) -> float | None:
    """Return the value as a finite float, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
