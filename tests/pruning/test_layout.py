"""Weights stored as (input, output): granularities see rows of outputs all the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning import NM, Block, Global, Pruner, Rows, Schedule, Scope, default_scope
from kd_prune.pruning.layout import Transposed


class Conv1D(nn.Module):
    """As in transformers: y = x W + b, W of shape (nx, nf)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


def make(kind):
    torch.manual_seed(0)
    layers = {
        "gpt": Conv1D(nf=6, nx=8),
        "conv": nn.ConvTranspose2d(8, 6, (1, 3)),
        "grouped": nn.ConvTranspose1d(8, 6, 3, groups=2),
    }
    return nn.Sequential(layers[kind], nn.Linear(6, 2))


def of_output(weight, groups):
    """Rows of weights that one output is computed with, by the definition of the layer."""
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    return torch.stack(
        [
            weight[g * inputs : (g + 1) * inputs, o].flatten()
            for g in range(groups)
            for o in range(outputs)
        ]
    )


def prune(model, final, **options):
    scope = default_scope(model)
    pruner = Pruner(scope.included, Schedule(final=final), total_steps=4, updates=2, **options)
    planned = pruner.preview()
    for step in range(1, 5):
        pruner.update(step)
        pruner.project()
    assert [t.pruned for t in planned.tensors] == [
        int((~mask).sum()) for mask in pruner.masks.values()
    ]
    return pruner.masks["0.weight"]


KINDS = [("gpt", 1), ("conv", 1), ("grouped", 2)]


@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_nm_runs_along_the_inputs_of_an_output(kind, groups):
    mask = prune(make(kind), 0.5, granularity=NM())
    rows = of_output(mask, groups)
    assert (rows.reshape(-1, 4).sum(1) == 2).all()


def test_nm_refuses_inputs_that_the_group_does_not_divide():
    model = nn.Sequential(Conv1D(nf=8, nx=6), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match=r"m=4: 0\.weight: does not divide the 6 inputs"):
        prune(model, 0.5, granularity=NM())


def test_nm_keeps_what_it_keeps_in_the_equal_linear_layer():
    for options in ({}, {"allocation": Global(ceiling=0.5)}):
        model, linear = make("gpt"), nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
        linear[0].weight.data = model[0].weight.data.T.clone()
        ours = prune(model, 0.4, granularity=NM(), **options)
        assert torch.equal(ours.T, prune(linear, 0.4, granularity=NM(), **options))


@pytest.mark.parametrize(("kind", "groups"), KINDS)
def test_rows_are_outputs(kind, groups):
    model = make(kind)
    means = of_output(model[0].weight.detach().abs(), groups).mean(1)
    mask = prune(model, 0.5, granularity=Rows())
    rows = of_output(mask, groups)
    assert (rows.all(1) | ~rows.any(1)).all()
    assert set((~rows.any(1)).nonzero().flatten().tolist()) == set(means.argsort()[:3].tolist())


def test_blocks_span_outputs_and_inputs():
    mask = prune(make("gpt"), 0.5, granularity=Block(rows=2, columns=4))
    tiles = mask.T.reshape(3, 2, 2, 4).sum((1, 3))
    assert set(tiles.flatten().tolist()) == {0, 8}


def test_own_selection_sees_outputs_first():
    seen = []

    def own(scores, count, kept):
        seen.append(tuple(scores.shape))
        return kept

    prune_own = Pruner(
        Scope(include=["0.weight"]).select(make("gpt")),
        Schedule(final=0.5),
        total_steps=2,
        granularity=own,
    )
    prune_own.update(2)
    assert seen == [(6, 8)]
    assert prune_own.masks["0.weight"].shape == (8, 6)
    assert not prune_own.expected_pruned


def test_own_selection_of_wrong_shape_is_refused():
    pruner = Pruner(
        Scope(include=["0.weight"]).select(make("gpt")),
        Schedule(final=0.5),
        total_steps=2,
        granularity=lambda scores, count, kept: kept[:1],
    )
    with pytest.raises(ConfigError, match=r"mask of shape \(1, 8\) for 0\.weight"):
        pruner.update(2)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_layout_there_and_back(groups, inputs, outputs, kernel):
    stored = torch.arange(groups * inputs * outputs * kernel).reshape(
        groups * inputs, outputs, kernel
    )
    layout = Transposed(groups=groups)
    rows = layout.to_rows(stored)
    assert tuple(rows.shape) == layout.rows_shape(stored.shape)
    assert torch.equal(rows.flatten(1), of_output(stored, groups))
    assert torch.equal(layout.from_rows(rows), stored)
