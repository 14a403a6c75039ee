"""Tensors that a criterion has not observed: pruned after the others, and named once."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from kd_prune.pruning import (
    PLATON,
    BlockFisher,
    DiagonalFisher,
    Global,
    MeanScore,
    Movement,
    Pruner,
    Schedule,
    SoftMovement,
    Taylor,
    Wanda,
    uniform,
)

STEPS = 4
GRADIENT_CRITERIA = [Taylor(), Movement(), PLATON(), DiagonalFisher(), BlockFisher(block=5)]


def make_pruner(criterion, allocation, final=0.5, updates=4):
    generator = torch.Generator().manual_seed(0)
    weights = {n: nn.Parameter(torch.randn(10, 10, generator=generator)) for n in "abc"}
    schedule = Schedule(final=final)
    return Pruner(
        weights,
        schedule,
        total_steps=STEPS,
        updates=updates,
        criterion=criterion,
        allocation=allocation,
    )


def train(pruner, observed="ab", scale=1.0, first=1):
    generator = torch.Generator().manual_seed(1)
    for step in range(first, STEPS + 1):
        gradients = {n: scale * torch.randn(10, 10, generator=generator) for n in "abc"}
        pruner.observe({n: gradients[n] for n in observed})
        pruner.update(step)
        pruner.project()
    return {n: int((w == 0).sum()) for n, w in pruner.parameters.items()}


def named():
    return pytest.warns(UserWarning, match="^c: no (gradient|input) was seen before this mask")


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA, ids=str)
def test_one_ranking_prunes_it_last_whatever_the_scale_of_the_gradients(criterion, scale):
    with named():
        zeros = train(make_pruner(criterion, Global()), scale=scale)
    assert zeros["c"] == 0
    assert zeros["a"] + zeros["b"] == 150


@pytest.mark.parametrize("criterion", [Taylor(), DiagonalFisher()], ids=str)
def test_it_is_pruned_where_the_others_do_not_suffice(criterion):
    with named():
        zeros = train(make_pruner(criterion, Global(ceiling=0.9), final=0.8))
    assert zeros == {"a": 90, "b": 90, "c": 60}


@pytest.mark.parametrize("criterion", [Taylor(), PLATON(), Movement()], ids=str)
def test_allocations_that_compare_nothing_prune_its_smallest_weights(criterion):
    pruner = make_pruner(criterion, uniform)
    largest = pruner.parameters["c"].detach().abs().flatten().topk(50).indices
    with named():
        assert train(pruner)["c"] == 50
    assert pruner.masks["c"].flatten()[largest].all()


def test_shares_of_mean_scores_leave_it_as_it_is():
    pruner = make_pruner(SoftMovement(penalty=0.0), MeanScore(), final=0.3)
    with named():
        assert train(pruner)["c"] <= 30


def test_it_is_named_once_and_not_in_the_first_update():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner = make_pruner(Taylor(), Global())
        pruner.observe({n: torch.ones(10, 10) for n in "ab"})
        pruner.update(1)
    with named() as caught:
        train(pruner, first=2)
    assert len(caught) == 1


def test_a_single_update_names_it():
    with named():
        assert train(make_pruner(Taylor(), Global(), updates=1))["c"] == 0


def test_a_network_that_waits_for_its_turn_is_not_named():
    pruner = make_pruner(Taylor(), Global())
    pruner.observe({n: torch.ones(10, 10) for n in "ab"})
    pruner.update(1)
    assert sum(train(pruner, "abc", first=2).values()) == 150


def test_nothing_is_said_where_nothing_is_observed():
    assert sum(train(make_pruner(Taylor(), Global()), observed="").values()) == 150
    assert sum(train(make_pruner(Wanda(), uniform), observed="").values()) == 150


def test_what_was_observed_is_part_of_the_state():
    pruner = make_pruner(DiagonalFisher(), Global())
    pruner.observe({n: torch.ones(10, 10) for n in "ab"})
    pruner.update(1)
    state = copy.deepcopy(pruner.state_dict())
    resumed = make_pruner(DiagonalFisher(), Global())
    resumed.load_state_dict(state)
    with named():
        zeros = train(resumed, first=2)
    with named():
        assert zeros == train(pruner, first=2)
    del state["observed"]  # of an earlier version: every tensor counts as observed
    earlier = make_pruner(DiagonalFisher(), Global())
    earlier.load_state_dict(state)
    assert train(earlier, first=2)["c"] > 0


def test_gradients_of_an_embedding_may_be_sparse():
    pruner = make_pruner(Taylor(), Global())
    dense = torch.zeros(10, 10)
    dense[3] = 1.0
    pruner.observe({"a": dense.to_sparse(), "b": dense, "c": dense})
    state = pruner.state_dict()["criterion_state"]
    assert state["a"]["score"].count_nonzero() == 10


def test_squares_that_overflow_do_not_become_nan():
    pruner = make_pruner(DiagonalFisher(), Global())
    pruner.observe({n: torch.full((10, 10), 1e30) for n in "abc"})
    assert sum(train(pruner, "abc").values()) == 150
