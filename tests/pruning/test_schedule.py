"""Schedule."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.errors import ConfigError
from kd_prune.pruning.ramps import cubic, one_shot
from kd_prune.pruning.schedule import Schedule

from .schedules import cubic_oracle, schedules


@given(schedules(st.just(cubic)), st.fractions(0, 1, max_denominator=10_000))
def test_schedule_cubic_against_exact_arithmetic(schedule, progress):
    progress = float(progress)
    expected = cubic_oracle(schedule, Fraction(progress))
    assert schedule(progress) == pytest.approx(float(expected), abs=1e-12)


@given(schedules(), st.floats(0, 1))
def test_schedule_is_zero_before_begin_and_within_initial_and_final_after(schedule, progress):
    sparsity = schedule(progress)
    if progress < schedule.begin:
        assert sparsity == 0.0
    else:
        assert schedule.initial <= sparsity <= schedule.final


@given(schedules(), st.floats(0, 1), st.floats(0, 1))
def test_schedule_never_decreases(schedule, one, other):
    assert schedule(min(one, other)) <= schedule(max(one, other))


@given(schedules())
def test_schedule_ends_are_exact(schedule):
    assert schedule(schedule.end) == schedule(1.0) == schedule.final
    assert schedule.sparsity_at(0.0) == schedule(schedule.begin)
    assert schedule.sparsity_at(1.0) == schedule.final
    if schedule.ramp(0.0) == 0.0:
        assert schedule(schedule.begin) == schedule.initial


def test_schedule_rounding_keeps_final_exact():
    assert 0.33 + (0.87 - 0.33) > 0.87
    assert Schedule(final=0.87, initial=0.33, ramp=one_shot)(0.5) == 0.87
    assert 0.05 + (0.21 - 0.05) < 0.21
    assert Schedule(final=0.21, initial=0.05)(1.0) == 0.21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final": 95}, r"final=95: expected a fraction in \[0, 1\); did you mean 0.95\?"),
        ({"final": 1.0}, r"final=1.0: expected a fraction in \[0, 1\)$"),
        ({"final": -0.1}, r"final=-0.1: expected a fraction"),
        ({"final": float("nan")}, r"final=nan: expected a fraction"),
        ({"final": 0.9, "initial": 50}, r"initial=50: .* did you mean 0.5\?"),
        ({"final": 0.9, "initial": float("nan")}, r"initial=nan"),
        ({"final": 0.9, "initial": 0.91}, r"initial=0.91: is above final=0.9"),
        ({"final": 0.9, "begin": 0.5, "end": 0.5}, r"begin=0.5: is not before end=0.5"),
        ({"final": 0.9, "begin": 0.6, "end": 0.5}, r"begin=0.6: .* sparsity/ramp=one_shot"),
        ({"final": 0.9, "end": 1.5}, r"end=1.5: expected a fraction in \[0, 1\]$"),
        ({"final": 0.9, "begin": float("nan")}, r"begin=nan"),
        ({"final": 0.9, "end": float("nan")}, r"end=nan"),
    ],
)
def test_schedule_argument_out_of_range_raises(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(**arguments)


@given(schedules())
def test_schedule_after_end_stays_at_final(schedule):
    later = (schedule.end + k / 8 * (1 - schedule.end) for k in range(9))
    assert {schedule(progress) for progress in later} == {schedule.final}


def test_schedule_initial_sparsity_starts_at_begin():
    schedule = Schedule(final=0.9, initial=0.7, begin=0.25, end=0.75)
    assert schedule(0.2499) == 0.0
    assert schedule(0.25) == 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"milestones": [0.5, 0.5]}, r"milestones=\[0.5, 0.5\]: expected sparsities that increase"),
        ({"milestones": 0.5}, r"milestones=0.5: expected a list, \[0.5\]"),
        ({"milestones": [0.9]}, "increase between initial=0.0 and final=0.9"),
        ({"milestones": [0.5], "initial": 0.7}, "increase between initial=0.7"),
        ({"milestones": [50]}, r"milestones=50: .* did you mean 0.5\?"),
        (
            {"milestones": [0.5], "milestone_length": 30},
            r"milestone_length=30: .* did you mean 0.3\?",
        ),
        (
            {"milestones": [0.2, 0.5], "milestone_length": 0.5},
            "milestone_length=0.5: 2 milestones of this length take up the ramp",
        ),
    ],
)
def test_schedule_invalid_milestones_raise(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(**{"final": 0.9, **arguments})
