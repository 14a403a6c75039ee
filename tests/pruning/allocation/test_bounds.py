"""Bounded, and the bounds of Global."""

from fractions import Fraction
from functools import partial
from math import ceil, floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.errors import ConfigError
from kd_prune.pruning.allocation import (
    ERK,
    Bounded,
    Global,
    GroupAllocation,
    uniform,
)
from kd_prune.pruning.selection import unstructured

from .problems import counts_of, limits_oracle, models, ones, sizes_of

BOUNDED = pytest.mark.parametrize(
    "make", [Global, partial(Bounded, allocation=uniform)], ids=["global", "bounded"]
)


@BOUNDED
@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"ceiling": -0.1}, "ceiling=-0.1: expected a fraction"),
        ({"ceiling": 1.1}, "ceiling=1.1: expected a fraction"),
        ({"ceiling": 95}, r"ceiling=95: .* did you mean 0.95\?"),
        ({"ceiling": float("nan")}, "ceiling=nan"),
        ({"floor": -0.1}, "floor=-0.1: expected a fraction"),
        ({"floor": float("nan")}, "floor=nan"),
        ({"floor": 0.9, "ceiling": 0.8}, r"floor=0.9: is above ceiling=0.8"),
    ],
)
def test_bounds_out_of_range_raise(make, bounds, message):
    with pytest.raises(ConfigError, match=message):
        make(**bounds)


@BOUNDED
def test_ceiling_below_target_raises(make):
    masks = {"a": ones(4)}
    message = r"^allocation\.ceiling=0\.5: is below the sparsity asked for, 0\.9; raise it$"
    with pytest.raises(ConfigError, match=message):
        make(ceiling=0.5)(masks, lambda name: torch.zeros(4), 0.9)


@given(models(all_kept=True), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_bounds_hold_from_dense_masks(model, one, other, bottom):
    sparsity, ceiling = sorted([one, other])
    bottom = min(bottom, ceiling)
    scores, kept = model
    for allocation in (
        Global(floor=bottom, ceiling=ceiling),
        Bounded(allocation=ERK(), floor=bottom, ceiling=ceiling),
        Bounded(allocation=Global(), floor=bottom, ceiling=ceiling),
    ):
        counts = counts_of(allocation, scores, kept, sparsity)
        assert sum(counts.values()) == round(sparsity * sum(sizes_of(scores).values()))
        for name, s in scores.items():
            assert floor(min(bottom, sparsity) * s.size) <= counts[name] <= ceil(ceiling * s.size)


def bounded_oracle(scores, kept, sparsity, bottom, ceiling, found):
    """Clip, then distribute the difference in exact proportion to the room."""
    low, high, total = limits_oracle(kept, sparsity, bottom, ceiling)
    counts = {name: int(np.clip(found[name], low[name], high[name])) for name in kept}
    lacking = total - sum(counts.values())
    room = [(high if lacking > 0 else low)[name] - counts[name] for name in kept]
    shares = [Fraction(lacking * r, sum(room)) if lacking else Fraction(0) for r in room]
    shares = [abs(share) for share in shares]
    whole = [int(share) for share in shares]
    order = np.lexsort((range(len(shares)), [n - s for n, s in zip(whole, shares, strict=True)]))
    for i in order[: abs(lacking) - sum(whole)]:
        whole[i] += 1
    sign = 1 if lacking > 0 else -1
    return {name: counts[name] + sign * n for name, n in zip(kept, whole, strict=True)}


@given(models(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.data())
def test_bounded_against_reimplementation(model, one, other, bottom, data):
    sparsity, ceiling = sorted([one, other])
    bottom = min(bottom, ceiling)
    scores, kept = model
    found = {name: data.draw(st.integers(0, size)) for name, size in sizes_of(scores).items()}
    allocation = Bounded(allocation=lambda *_: found, floor=bottom, ceiling=ceiling)
    counts = counts_of(allocation, scores, kept, sparsity)
    assert counts == bounded_oracle(scores, kept, sparsity, bottom, ceiling, found)


@given(models(), st.floats(0, 1))
def test_bounded_without_bounds_equals_inner_allocation(model, sparsity):
    for allocation in (Global(), ERK(), GroupAllocation(ratios={"0": 2.0})):
        bounded = Bounded(allocation=allocation)
        assert counts_of(bounded, *model, sparsity) == counts_of(allocation, *model, sparsity)


@pytest.mark.parametrize(
    "allocation",
    [Global(floor=0.3, ceiling=0.97), Bounded(allocation=ERK(), floor=0.3, ceiling=0.97)],
    ids=lambda allocation: type(allocation).__name__,
)
@given(models(all_kept=True), st.lists(st.floats(0, 0.96), min_size=1, max_size=6).map(sorted))
def test_bounds_hold_on_ramp_within_one_weight_per_tensor(allocation, model, ramp):
    scores, kept = model
    score = {name: torch.from_numpy(s) for name, s in scores.items()}.__getitem__
    masks = {name: torch.from_numpy(mask) for name, mask in kept.items()}
    for sparsity in ramp:
        counts = allocation(masks, score, sparsity)
        for name, mask in masks.items():
            least = floor(min(0.3, sparsity) * mask.numel())
            assert least - len(masks) <= counts[name] <= ceil(0.97 * mask.numel())
        masks = {
            name: unstructured(score(name), counts[name], mask) for name, mask in masks.items()
        }
