"""Answers at chance, compared with an independent count in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.pipeline.chance import Answers

NAMES = ("one", "two", "three")


def answers(predictions, expected) -> Answers:
    found = Answers()
    for part in (slice(None, 40), slice(40, None)):  # two batches
        found.add(torch.tensor(predictions[part]), torch.tensor(expected[part]))
    return found


rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=200)


@given(rows)
def test_answers_are_compared_row_by_row_with_the_most_frequent_class(pairs):
    predictions, expected = np.array(pairs).T
    counts = np.bincount(expected, minlength=3)
    found = answers(predictions, expected).at_chance(NAMES, accuracy_counts=True)
    if (counts > 0).sum() == 1:
        assert found is None
    elif len(set(predictions)) == 1:
        assert (
            found == f"gives every row the same class, {NAMES[predictions[0]]}: it learnt nothing"
        )
    else:
        ours = predictions == expected
        verdicts = set()
        for constant in np.flatnonzero(counts == counts.max()):  # any of equally frequent ones
            theirs = expected == constant
            gained, lost = (ours & ~theirs).sum(), (theirs & ~ours).sum()
            verdicts.add(bool(lost and gained - lost < 2 * np.sqrt(gained + lost)))
        assert (found is not None) in verdicts


def right_for(count: int) -> Answers:
    """Answers to 100 rows, 50 of the most frequent class, of which `count` are right."""
    expected = [1] * 50 + [0] * 30 + [2] * 20
    wrong = [(label + 1) % 3 for label in expected]
    return answers(expected[:count] + wrong[count:], expected)


def test_message_says_how_often_either_is_right():
    assert right_for(60).at_chance(NAMES, accuracy_counts=True) is None
    assert right_for(40).at_chance(NAMES, accuracy_counts=True) == (
        "is right for 40.0% of the rows, hardly better than the same answer for all (two: 50.0%)"
    )


def test_model_without_an_error_among_few_rare_rows_is_no_chance():
    expected = [0] * 197 + [1] * 3
    assert answers(expected, expected).at_chance(NAMES, accuracy_counts=True) is None


def test_only_equal_answers_are_wrong_where_another_metric_counts():
    assert right_for(40).at_chance(NAMES, accuracy_counts=False) is None
    same = answers([2] * 100, [1] * 50 + [2] * 50)
    said = "gives every row the same class, three: it learnt nothing"
    assert same.at_chance(NAMES, accuracy_counts=False) == said


def test_one_class_among_the_labels_says_nothing():
    assert answers([0] * 100, [0] * 100).at_chance(NAMES, accuracy_counts=True) is None
    assert Answers().at_chance(NAMES, accuracy_counts=True) is None


@pytest.mark.parametrize("missing", [-100, -1])
def test_entries_without_class_do_not_count(missing):
    """A tagger's padding has the label -100."""
    found = answers([0, 1, 2, 2], [0, 1, missing, missing])
    assert (dict(found.right), dict(found.given)) == ({0: 1, 1: 1}, {0: 1, 1: 1})
    assert dict(found.expected) == {0: 1, 1: 1}
