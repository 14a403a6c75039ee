"""ERK and GroupAllocation."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.errors import ConfigError
from kd_prune.pruning.allocation import (
    ERK,
    Global,
    GroupAllocation,
)

from .problems import SHAPES, apportion_oracle, counts_of, ones, unread


def erk_oracle(shapes, sparsity, power=1.0):
    """Densities as in the code of RigL: those above 1 are made dense, the highest first."""
    dims = list(shapes)
    size = np.array([np.prod(d) for d in dims], float)
    raw = np.array([(np.sum(d) / np.prod(d)) ** power for d in dims])
    dense = np.zeros(len(dims), bool)
    while not dense.all():
        ones_left = (1 - sparsity) * size.sum() - size[dense].sum()
        epsilon = ones_left / (raw[~dense] * size[~dense]).sum()
        worst = raw[~dense].max()
        if epsilon * worst <= 1:
            return np.where(dense, 1.0, epsilon * raw)
        dense |= raw == worst
    return np.ones(len(dims))


LARGER = st.lists(
    st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=6
)


@given(LARGER, st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_erk_against_rigl(shapes, sparsity, power):
    masks = {str(i): ones(*shape) for i, shape in enumerate(shapes)}
    counts = ERK(power=power)(masks, unread, sparsity)
    size = np.array([mask.numel() for mask in masks.values()])
    assert sum(counts.values()) == round(sparsity * int(size.sum()))
    # Rounding the total changes a density slightly, and the largest remainder its count by one.
    stay = size - np.array(list(counts.values()))
    target = erk_oracle(shapes, 1 - stay.sum() / size.sum(), power) * size
    assert (abs(stay - target) < 1 + 1e-6).all()


def test_erk_of_bert_shapes():
    shapes = {"attention": (768, 768), "up": (3072, 768), "head": (2, 768)}
    masks = {name: ones(*shape) for name, shape in shapes.items()}
    counts = ERK()(masks, unread, 0.95)
    total = 768 * 768 + 3072 * 768 + 2 * 768
    assert sum(counts.values()) == round(0.95 * total)
    left = {name: mask.numel() - counts[name] for name, mask in masks.items()}
    assert left["head"] == 1536
    assert left["up"] / left["attention"] == pytest.approx(3840 / 1536, rel=1e-4)


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf")])
def test_erk_power_out_of_range_raises(power):
    with pytest.raises(ConfigError, match="power="):
        ERK(power=power)


@given(st.lists(SHAPES, min_size=3, max_size=6), st.floats(0, 1), st.data())
def test_group_allocation_against_reimplementation(shapes, sparsity, data):
    names = [f"{i}.{('attention', 'ffn', 'other')[i % 3]}" for i in range(len(shapes))]
    masks = {name: ones(*shape) for name, shape in zip(names, shapes, strict=True)}
    ratios = {"*.attention": data.draw(st.floats(0.1, 10)), "*.ffn": data.draw(st.floats(0.1, 10))}
    counts = GroupAllocation(ratios=ratios)(masks, unread, sparsity)
    groups = [names[0::3], names[1::3], names[2::3]]
    sizes = [sum(masks[name].numel() for name in group) for group in groups]
    weights = [Fraction(w) * n for w, n in zip([*ratios.values(), 1], sizes, strict=True)]
    stay = apportion_oracle(sum(sizes) - round(sparsity * sum(sizes)), weights, sizes)
    for group, left in zip(groups, stay, strict=True):
        each = [masks[name].numel() for name in group]
        expected = apportion_oracle(left, each, each)
        assert [masks[name].numel() - counts[name] for name in group] == expected
    assert list(counts) == names


def test_group_allocation_keeps_densities_in_ratio_and_clips_at_dense():
    masks = {"attention": ones(100, 100), "ffn": ones(100, 200)}
    group = GroupAllocation(ratios={"attention": 2.0, "ffn": 1.0})
    assert group(masks, unread, 0.9) == {"attention": 8500, "ffn": 18500}
    assert group(masks, unread, 0.2) == {"attention": 0, "ffn": 6000}


def test_group_allocation_first_matching_pattern_counts():
    masks = {"0.attention": ones(10, 10), "1.attention": ones(10, 10)}
    counts = GroupAllocation(ratios={"0.*": 3.0, "*.attention": 1.0})(masks, unread, 0.8)
    assert counts == {"0.attention": 70, "1.attention": 90}


def test_group_allocation_ranks_within_a_group():
    scores = {"a.0": np.arange(10.0), "a.1": np.arange(10.0) + 5, "b": np.arange(10.0) - 99}
    kept = {name: np.ones(10, bool) for name in scores}
    group = GroupAllocation(ratios={"a.*": 1.0}, inner=Global())
    assert counts_of(group, scores, kept, 0.5) == {"a.0": 8, "a.1": 2, "b": 5}


@pytest.mark.parametrize("ratios", [{"x.*": 1.0}, {"*": 2.0, "a": 1.0}])
def test_group_allocation_pattern_without_tensor_raises(ratios):
    pattern = re.escape(list(ratios)[-1])
    with pytest.raises(ConfigError, match=rf"ratios={pattern}: the pattern matches no tensor"):
        GroupAllocation(ratios=ratios)({"a": ones(4)}, unread, 0.5)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_group_allocation_ratio_out_of_range_raises(weight):
    with pytest.raises(ConfigError, match=r"ratios\[a\]="):
        GroupAllocation(ratios={"a": weight})


def test_group_allocation_list_raises():
    with pytest.raises(TypeError, match="expected pattern → ratio"):
        GroupAllocation(ratios=["a"])
