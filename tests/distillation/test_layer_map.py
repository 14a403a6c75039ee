import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.distillation.layer_map import layer_pairs


@given(student=st.integers(1, 12), multiple=st.integers(1, 6))
def test_layers_are_spread_evenly(student, multiple):
    pairs = layer_pairs(student, student * multiple)
    assert [s for s, _ in pairs] == list(range(1, student + 1))
    assert [t for _, t in pairs] == list(range(multiple, student * multiple + 1, multiple))


@given(student=st.integers(1, 12), teacher=st.integers(1, 24))
def test_layers_spread_over_any_deeper_teacher(student, teacher):
    """The nearest layer below the exact place plus one half; each teacher layer at most once."""
    if student > teacher:
        with pytest.raises(ValueError, match=f"{teacher} teacher layers.*{student} .*give a layer"):
            layer_pairs(student, teacher)
        return
    pairs = layer_pairs(student, teacher)
    assert [s for s, _ in pairs] == list(range(1, student + 1))
    chosen = [t for _, t in pairs]
    assert chosen == sorted(set(chosen))
    assert chosen[-1] == teacher
    for s, t in pairs:
        assert t == math.floor(Fraction(s * teacher, student) + Fraction(1, 2))


@pytest.mark.parametrize(
    "layer_map", [{1: 5}, {2: 1, 1: 2}, {0: 0}, {0: 0, 1: 3, 2: 6}, {1: 6, 2: 6}]
)
def test_layer_map_is_used_as_given(layer_map):
    assert dict(layer_pairs(2, 6, layer_map)) == layer_map


@pytest.mark.parametrize(
    ("layer_map", "message"),
    [
        ({3: 1}, "the student has layers 1 … 2 .*not 3"),
        ({-1: 1}, "the student has layers 1 … 2 .*not -1"),
        ({1: 7}, "the teacher has layers 1 … 6 .*not 7"),
        ({1: 1, 2: -2}, "the teacher has layers 1 … 6 .*not -2"),
        ({}, r"layer_map=\{\}: compares no layers; set the term's weight to 0"),
    ],
)
def test_layer_map_that_does_not_fit_raises(layer_map, message):
    with pytest.raises(ValueError, match=message):
        layer_pairs(2, 6, layer_map)


def test_student_without_layers_is_refused():
    with pytest.raises(ValueError, match=r"^layer_map=null: 6 teacher layers .* 0 student layers"):
        layer_pairs(0, 6)
