"""Ramps."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.errors import ConfigError
from kd_prune.pruning.ramps import Stepwise, cosine, cubic, linear

from .schedules import RAMPS, tables


@given(RAMPS, st.floats(0, 1), st.floats(0, 1))
def test_ramps_rise_within_0_and_1(ramp, one, other):
    assert 0.0 <= ramp(min(one, other)) <= ramp(max(one, other)) <= ramp(1.0) == 1.0


@pytest.mark.parametrize("ramp", [cubic, linear, cosine])
def test_smooth_ramps_start_at_0(ramp):
    assert ramp(0.0) == 0.0


def cosine_oracle(u, terms=25):
    """½ (1 - cos πu) in exact arithmetic, from the Taylor series of the cosine."""
    square = (Fraction("3.14159265358979323846264338327950288") * u) ** 2
    total, term = Fraction(0), Fraction(1)
    for k in range(1, terms):
        total += term
        term = -term * square / ((2 * k - 1) * 2 * k)
    return (1 - total) / 2


@given(st.fractions(0, 1, max_denominator=1000))
def test_cosine_against_its_series(u):
    assert cosine(float(u)) == pytest.approx(float(cosine_oracle(u)), abs=1e-14)


@given(st.floats(0, 1))
def test_cosine_is_symmetric(u):
    assert cosine(u) + cosine(1 - u) == pytest.approx(1)


@given(tables(), st.floats(0, 1))
def test_stepwise_against_table_walk(ramp, u):
    reached = 0.0
    for point, share in ramp.levels.items():
        if point <= u:
            reached = share
    assert ramp(u) == reached


def test_stepwise_does_not_change_with_its_argument():
    levels = {0.5: 1.0}
    ramp = Stepwise(levels=levels)
    levels[0.2] = 0.9
    assert ramp(0.3) == 0.0


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({}, r"levels=\{\}: expected a table whose last fraction is 1.0"),
        ({0.5: 0.8}, r"levels=\{0.5: 0.8\}: expected a table whose last fraction is 1.0"),
        ({0.6: 0.5, 0.2: 1.0}, r"points \[0.6, 0.2\] do not increase; sort them"),
        ({0.2: 0.8, 0.6: 0.5, 1.0: 1.0}, r"fractions \[0.8, 0.5, 1.0\] decrease"),
        ({50: 1.0}, r"levels.point=50: expected a fraction in \[0, 1\]; did you mean 0.5\?"),
        ({-0.1: 1.0}, r"levels.point=-0.1"),
        ({float("nan"): 1.0}, r"levels.point=nan"),
        ({0.5: 50, 1.0: 1.0}, r"levels\[0.5\]=50: .* did you mean 0.5\?"),
        ({0.5: float("nan"), 1.0: 1.0}, r"levels\[0.5\]=nan"),
    ],
)
def test_stepwise_invalid_table_raises(levels, message):
    with pytest.raises(ConfigError, match=message):
        Stepwise(levels=levels)
