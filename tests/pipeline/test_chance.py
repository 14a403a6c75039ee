"""Answers at chance, compared with an independent count in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_prune.pipeline.chance import Answers

NAMES = ("one", "two", "three")


def answers(predictions: list[int], expected: list[int]) -> Answers:
    found = Answers()
    for part in (slice(None, 40), slice(40, None)):  # two batches
        found.add(torch.tensor(predictions[part]), torch.tensor(expected[part]))
    return found


def right_for(rows: int) -> Answers:
    """Answers to 100 rows, 50 of the most frequent class, of which `rows` are right."""
    expected = [1] * 50 + [0] * 30 + [2] * 20
    wrong = [(label + 1) % 3 for label in expected]
    return answers(expected[:rows] + wrong[rows:], expected)


@pytest.mark.parametrize(("rows", "warns"), [(40, True), (59, True), (60, False), (80, False)])
def test_accuracy_is_compared_with_that_of_the_most_frequent_class(rows, warns):
    share = 0.5
    assert warns == (rows / 100 < share + 2 * np.sqrt(share * (1 - share) / 100))
    found = right_for(rows).at_chance(NAMES, accuracy_counts=True)
    said = f"is right for {rows}.0% of the rows; always answering two is right for 50.0%"
    assert found == (said if warns else None)


def test_only_equal_answers_are_wrong_where_another_metric_counts():
    assert right_for(40).at_chance(NAMES, accuracy_counts=False) is None
    same = answers([2] * 100, [1] * 50 + [2] * 50)
    said = "gives every row the same class, three"
    assert same.at_chance(NAMES, accuracy_counts=False) == said


def test_one_class_among_the_labels_says_nothing():
    assert answers([0] * 100, [0] * 100).at_chance(NAMES, accuracy_counts=True) is None
    assert Answers().at_chance(NAMES, accuracy_counts=True) is None


def test_entries_without_class_do_not_count():
    """A tagger's padding has the label -100."""
    found = answers([0, 1, 2, 2], [0, 1, -100, -100])
    assert (found.right, dict(found.given), dict(found.expected)) == (2, {0: 1, 1: 1}, {0: 1, 1: 1})
