"""Compensation of BlockFisher: remaining weights move as the constrained problem says."""

import numpy as np
import pytest
import torch

from kd_prune.pruning.criteria.fisher import BlockFisher

from .fisher_oracles import (
    compensation_oracle,
    dense_fisher,
    observe_all,
    paper_oracle,
    seeded,
    tensors,
)


@pytest.mark.parametrize("shape", [(4, 6), (5, 5), (7,)])
@pytest.mark.parametrize("block", [2, 4, 6, 50])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("gone", [0.0, 0.3])
def test_compensation_solves_the_constrained_problem(shape, block, share, gone):
    (weight,) = tensors(shape, 1, seed=1)
    weight[torch.rand(shape, generator=seeded(3)) < gone] = 0.0
    gradients = tensors(shape, 150)
    criterion = BlockFisher(block=block)
    state = observe_all(criterion, weight, gradients)
    dropped = (torch.rand(shape, generator=seeded(2)) < share) & (weight != 0)
    fisher = dense_fisher(weight, gradients, block, 1e-7)
    change = compensation_oracle(weight, dropped, fisher)
    np.testing.assert_allclose(change, paper_oracle(weight, dropped, fisher), rtol=1e-6, atol=1e-9)

    before = weight.clone()
    criterion.compensate(weight, dropped, state)
    assert torch.equal(weight[dropped], before[dropped]), "values in place until projected"
    assert (weight[before == 0] == 0).all(), "a pruned weight moved"
    remaining = ~dropped
    expected = before.double().numpy() + change
    np.testing.assert_allclose(weight[remaining], expected[remaining.numpy()], rtol=1e-4, atol=1e-4)


def test_compensate_blocks_without_pruned_weights_are_unchanged():
    (weight,) = tensors((12,), 1, seed=1)
    criterion = BlockFisher(block=4)
    state = observe_all(criterion, weight, tensors((12,), 30))
    before, dropped = weight.clone(), torch.arange(12) == 5
    criterion.compensate(weight, dropped, state)
    changed = weight != before
    assert changed.tolist() == [4 <= i < 8 and i != 5 for i in range(12)]


def test_compensate_noncontiguous_weight_is_changed_in_place():
    weight = tensors((6, 4), 1, seed=1)[0].T
    plain = weight.contiguous()
    gradients = tensors((4, 6), 40)
    criterion = BlockFisher(block=5)
    dropped = plain > 0.5
    for values in (weight, plain):
        criterion.compensate(values, dropped, observe_all(criterion, values, gradients))
    assert torch.equal(weight, plain)


def test_compensate_accepts_a_parameter():
    parameter = torch.nn.Parameter(tensors((6,), 1, seed=1)[0])
    before = parameter.detach().clone()
    criterion = BlockFisher(block=6)
    state = observe_all(criterion, parameter, tensors((6,), 20))
    criterion.compensate(parameter, torch.arange(6) == 2, state)
    assert not torch.equal(parameter.detach(), before)
    assert parameter.is_leaf
