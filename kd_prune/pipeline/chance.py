"""Chance: whether a classifier is better than the same answer for every row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Answers:
    """Counts of a classifier's answers.

    Attributes:
        given: Class → rows for which it was predicted.
        expected: Class → rows that have it.
        right: Rows whose class was predicted.
    """

    given: Counter[int] = field(default_factory=Counter)
    expected: Counter[int] = field(default_factory=Counter)
    right: int = 0

    def add(self, predictions: Tensor, expected: Tensor) -> None:
        """Count a batch; entries without class (< 0), such as padding, are left out."""
        labelled = expected >= 0
        self.given.update(predictions[labelled].tolist())
        self.expected.update(expected[labelled].tolist())
        self.right += int((predictions == expected).sum())

    def at_chance(self, names: Sequence[str], *, accuracy_counts: bool) -> str | None:
        """Return what is wrong with the answers, as the end of a sentence; None: nothing.

        They are at chance if all are the same, or if their accuracy exceeds the share ``p`` of the
        most frequent class by less than two standard errors, ``2 √(p (1 − p) / rows)``.

        Args:
            names: Class names.
            accuracy_counts: Whether the task is judged by accuracy. If not, another metric may be
                good at any accuracy, and only equal answers are wrong.
        """
        if len(self.expected) < 2:
            return None  # no labels, or nothing to tell apart
        if len(self.given) == 1:
            return f"gives every row the same class, {names[next(iter(self.given))]}"
        (frequent, count), rows = self.expected.most_common(1)[0], self.expected.total()
        if accuracy_counts and self.right < count + 2 * math.sqrt(count * (1 - count / rows)):
            return (
                f"is right for {self.right / rows:.1%} of the rows; always answering "
                f"{names[frequent]} is right for {count / rows:.1%}"
            )
        return None
