"""Taylor and movement."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.pruning.criteria import (
    PLATON,
    Movement,
    SoftMovement,
    Taylor,
)

from .steps import observe_all, run_of, score_of


@given(rate=st.floats(1e-3, 1e3), steps=st.integers(1, 5))
def test_movement_is_linear_in_its_rate(rate, steps):
    run = run_of((3, 4), steps)
    score = score_of(Movement(rate=rate), run)
    torch.testing.assert_close(score, rate * score_of(Movement(), run), rtol=1e-5, atol=1e-6 * rate)


def test_taylor_and_platon_agree_in_order_after_one_step():
    run = run_of((3, 4), 1)
    taylor = score_of(Taylor(), run).flatten().argsort()
    assert torch.equal(taylor, score_of(PLATON(), run).flatten().argsort())


def test_movement_keeps_weights_moving_away_from_zero():
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0], requires_grad=True)
    target = torch.tensor([2.0, -2.0, 0.0, 0.0])
    optimizer = torch.optim.SGD([weight], lr=0.1)
    criterion = Movement()
    state = criterion.init_state(weight)
    for _ in range(3):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        criterion.observe(weight, weight.grad, state)
        optimizer.step()
    assert (criterion(weight, state) > 0).tolist() == [True, True, False, False]


def test_movement_pruned_weight_keeps_its_score():
    criterion = Movement()
    state = observe_all(criterion, run_of((2, 3), 3))
    before = criterion(torch.zeros(2, 3), state).clone()
    criterion.observe(torch.zeros(2, 3), torch.randn(2, 3), state)
    assert torch.equal(criterion(torch.zeros(2, 3), state), before)


@pytest.mark.parametrize("size", [20, 2000])
def test_soft_movement_penalty_alone_takes_documented_steps(size):
    """For every size of tensor and penalty, because Adam ignores the gradient's scale."""
    criterion = SoftMovement(penalty=size * 1e-3)
    weight, still = torch.ones(size), torch.zeros(size)
    state, steps = criterion.init_state(weight), 0
    while criterion(weight, state).max() > 0.1:
        criterion.observe(weight, still, state)
        steps += 1
    assert steps == 276
    assert len(state["movement"].unique()) == 1
