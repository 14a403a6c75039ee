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
        right: Class → rows that have it and for which it was predicted.
    """

    given: Counter[int] = field(default_factory=Counter)
    expected: Counter[int] = field(default_factory=Counter)
    right: Counter[int] = field(default_factory=Counter)

    def add(self, predictions: Tensor, expected: Tensor) -> None:
        """Count a batch; entries without class (< 0), such as padding, are left out."""
        labelled = expected >= 0
        self.given.update(predictions[labelled].tolist())
        self.expected.update(expected[labelled].tolist())
        self.right.update(expected[labelled & (predictions == expected)].tolist())

    def at_chance(self, names: Sequence[str], *, accuracy_counts: bool) -> str | None:
        """Describe answers that are no better than chance, as the end of a sentence; None: better.

        They are at chance if all are the same, or if they are hardly better than the most frequent
        class for all rows: of the rows that one of the two gets wrong, the model is right for ``a``
        and the constant answer for ``b``, and ``a − b`` is below two standard errors,
        ``2 √(a + b)``.

        Args:
            names: Class names.
            accuracy_counts: Whether the task is judged by accuracy. If not, another metric may be
                good at any accuracy, and only equal answers are wrong.
        """
        if len(self.expected) < 2:
            return None  # no labels, or nothing to tell apart
        if len(self.given) == 1:
            only = names[next(iter(self.given))]
            return f"gives every row the same class, {only}: it learnt nothing"
        (frequent, count), rows = self.expected.most_common(1)[0], self.expected.total()
        gained = self.right.total() - self.right[frequent]
        lost = count - self.right[frequent]
        if not accuracy_counts or not lost or gained - lost >= 2 * math.sqrt(gained + lost):
            return None
        return (
            f"is right for {self.right.total() / rows:.1%} of the rows, hardly better than the "
            f"same answer for all ({names[frequent]}: {count / rows:.1%})"
        )
