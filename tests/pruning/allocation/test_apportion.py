"""apportion against repeated division."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.pruning.allocation.apportion import apportion

from .problems import apportion_oracle


@st.composite
def apportionments(draw):
    size = draw(st.integers(1, 6))
    weights = draw(st.lists(st.floats(0, 9) | st.integers(0, 3), min_size=size, max_size=size))
    limits = draw(st.lists(st.integers(0, 30), min_size=size, max_size=size))
    most = sum(limit for limit, weight in zip(limits, weights, strict=True) if weight)
    return draw(st.integers(0, most)), weights, limits


@given(apportionments())
def test_apportion_against_repeated_division(problem):
    assert apportion(*problem) == apportion_oracle(*problem)


@given(apportionments())
def test_apportion_sum_is_exact_within_limits_and_zero_weight_gets_nothing(problem):
    total, weights, limits = problem
    shares = apportion(total, weights, limits)
    assert sum(shares) == total
    assert all(
        0 <= n <= (limit if weight else 0)
        for n, limit, weight in zip(shares, limits, weights, strict=True)
    )


def test_apportion_total_above_limits_raises():
    with pytest.raises(ValueError, match="total=5: the limits of positive weights add up to 4"):
        apportion(5, weights=[1.0, 0.0], limits=[4, 9])
