"""Properties of all allocations, and uniform."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.pruning.allocation import (
    ERK,
    Bounded,
    Global,
    GroupAllocation,
    uniform,
)
from kd_prune.pruning.selection import count_pruned, unstructured

from .problems import SHAPES, models, ones, sizes_of, unread


@given(st.lists(SHAPES, min_size=1, max_size=4), st.floats(0, 1))
def test_uniform_counts_are_rounded_per_tensor(shapes, sparsity):
    masks = {str(i): ones(*shape) for i, shape in enumerate(shapes)}
    counts = uniform(masks, masks.__getitem__, sparsity)
    assert counts == {name: round(sparsity * mask.numel()) for name, mask in masks.items()}


EXACT = [
    Global(),
    Global(floor=0.3, ceiling=0.97),
    Global(normalized=True),
    ERK(),
    ERK(power=0.0),
    GroupAllocation(ratios={"0": 3.0}),
    GroupAllocation(ratios={"0": 0.5}, inner=Global()),
    Bounded(allocation=uniform),
    Bounded(allocation=ERK(), floor=0.4, ceiling=0.96),
    Bounded(allocation=GroupAllocation(ratios={"0": 5.0}), floor=0.4),
]


@pytest.mark.parametrize("allocation", EXACT, ids=lambda allocation: type(allocation).__name__)
@given(models(), st.lists(st.floats(0, 0.96), min_size=1, max_size=4).map(sorted))
def test_allocations_on_ramp_have_exact_totals_and_nested_masks(allocation, model, ramp):
    scores, kept = model
    score = {name: torch.from_numpy(s) for name, s in scores.items()}.__getitem__
    masks = {name: torch.from_numpy(mask) for name, mask in kept.items()}
    size = sum(sizes_of(scores).values())
    for sparsity in ramp:
        gone = {name: count_pruned(mask) for name, mask in masks.items()}
        counts = allocation(masks, score, sparsity)
        assert list(counts) == list(masks)
        assert sum(counts.values()) == max(round(sparsity * size), sum(gone.values()))
        assert all(gone[name] <= counts[name] <= masks[name].numel() for name in masks)
        masks = {
            name: unstructured(score(name), counts[name], mask) for name, mask in masks.items()
        }


@pytest.mark.parametrize(
    "allocation",
    [
        ERK(),
        GroupAllocation(ratios={"*": 3.0}),
        Bounded(allocation=uniform),
        Bounded(allocation=ERK()),
    ],
    ids=lambda allocation: type(allocation).__name__,
)
@given(SHAPES, st.integers(2, 5), st.floats(0, 1))
def test_allocations_equal_tensors_get_equal_counts(allocation, shape, number, sparsity):
    masks = {str(i): ones(*shape) for i in range(number)}
    counts = allocation(masks, unread, sparsity).values()
    assert max(counts) - min(counts) <= 1
