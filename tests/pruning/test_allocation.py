import re
from fractions import Fraction
from functools import partial
from math import ceil, floor
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_prune.pruning.allocation import (
    ERK,
    Bounded,
    Global,
    PerType,
    Threshold,
    layerwise,
    share_out,
)
from kd_prune.pruning.mask import exact, pruned_in

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
# Few distinct values, so that most examples tie.
TIED = hnp.arrays(np.float32, SHAPES, elements=st.integers(-2, 2).map(float), fill=st.nothing())

# The second way is that of other devices: it runs on the CPU too.
WAYS = pytest.mark.parametrize("on_cpu", [True, False], ids=["numpy", "torch"])


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@given(st.lists(SHAPES, min_size=1, max_size=4), st.floats(0, 1))
def test_layerwise_counts(shapes, sparsity):
    masks = {str(i): ones(*shape) for i, shape in enumerate(shapes)}
    counts = layerwise(masks, masks.__getitem__, sparsity)
    assert counts == {name: round(sparsity * mask.numel()) for name, mask in masks.items()}


def apportion_oracle(total, weights, limits):
    """Share out in proportion, fix what is over its limit, start again; then largest remainders."""
    weights = [Fraction(weight) for weight in weights]
    shares = [Fraction(0)] * len(weights)
    free, over, left = {i for i, weight in enumerate(weights) if weight}, {-1}, Fraction(total)
    while free and over:
        rate = left / sum(weights[i] for i in free)
        over = {i for i in free if rate * weights[i] > limits[i]}
        for i in free:
            shares[i] = Fraction(limits[i]) if i in over else rate * weights[i]
        free -= over
        left -= sum(limits[i] for i in over)
    whole = [floor(share) for share in shares]
    while sum(whole) < total:
        remainders = [share - n for share, n in zip(shares, whole, strict=True)]
        whole[remainders.index(max(remainders))] += 1
    return whole


@st.composite
def apportionments(draw):
    size = draw(st.integers(1, 6))
    weights = draw(st.lists(st.floats(0, 9) | st.integers(0, 3), min_size=size, max_size=size))
    limits = draw(st.lists(st.integers(0, 30), min_size=size, max_size=size))
    most = sum(limit for limit, weight in zip(limits, weights, strict=True) if weight)
    return draw(st.integers(0, most)), weights, limits


@given(apportionments())
def test_share_out_against_repeated_division(problem):
    assert share_out(*problem) == apportion_oracle(*problem)


@given(apportionments())
def test_share_out_is_exact_within_limits_and_gives_nothing_for_no_weight(problem):
    total, weights, limits = problem
    shares = share_out(total, weights, limits)
    assert sum(shares) == total
    assert all(
        0 <= n <= (limit if weight else 0)
        for n, limit, weight in zip(shares, limits, weights, strict=True)
    )


def test_share_out_refuses_more_than_the_limits():
    with pytest.raises(ValueError, match="total=5: those with a weight above 0 take 4 at most"):
        share_out(5, weights=[1.0, 0.0], limits=[4, 9])


def sizes_of(arrays):
    return {name: array.size for name, array in arrays.items()}


def limits_oracle(kept, sparsity, bottom, ceiling):
    """Least and greatest counts, and the total."""
    gone = {name: int((~mask).sum()) for name, mask in kept.items()}
    total = max(round(sparsity * sum(sizes_of(kept).values())), sum(gone.values()))
    high = {name: max(gone[name], ceil(ceiling * mask.size)) for name, mask in kept.items()}
    raise_by = [
        max(floor(min(bottom, sparsity) * mask.size) - gone[name], 0) for name, mask in kept.items()
    ]
    affordable = total - sum(gone.values())
    if sum(raise_by) > affordable:
        raise_by = apportion_oracle(affordable, raise_by, raise_by)
    low = {name: gone[name] + n for name, n in zip(kept, raise_by, strict=True)}
    return low, high, total


def global_oracle(scores, kept, sparsity, ceiling, bottom=0.0):
    """Take each tensor's least, then walk by score, tensor and index; prune where there is room."""
    counts, limits, wanted = limits_oracle(kept, sparsity, bottom, ceiling)
    gone = {name: int((~mask).sum()) for name, mask in kept.items()}
    walk = sorted(
        (float(score), position, name)
        for position, name in enumerate(scores)
        for score in sorted(scores[name][kept[name]])[counts[name] - gone[name] :]
    )
    for _, _, name in walk:
        if sum(counts.values()) < wanted and counts[name] < limits[name]:
            counts[name] += 1
    return counts


@st.composite
def models(draw, all_kept=False):
    scores = {str(i): draw(TIED) for i in range(draw(st.integers(1, 4)))}
    kept = {
        name: np.ones(s.shape, bool)
        if all_kept
        else draw(hnp.arrays(np.bool_, s.shape, fill=st.nothing()))
        for name, s in scores.items()
    }
    return scores, kept


def counts_of(allocation, scores, kept, sparsity):
    masks = {name: torch.from_numpy(mask) for name, mask in kept.items()}
    return allocation(masks, lambda name: torch.from_numpy(scores[name]), sparsity)


def global_counts(scores, kept, sparsity, ceiling=1.0, **arguments):
    return counts_of(Global(ceiling=ceiling, **arguments), scores, kept, sparsity)


@WAYS
@given(models(), st.floats(0, 1), st.floats(0, 1))
def test_global_against_a_walk(on_cpu, model, one, other):
    sparsity, ceiling = sorted([one, other])
    scores, kept = model
    with patch("kd_prune.pruning.mask.on_cpu", return_value=on_cpu):
        counts = global_counts(scores, kept, sparsity, ceiling)
    assert counts == global_oracle(scores, kept, sparsity, ceiling)


@WAYS
@given(models(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_global_with_a_floor_against_a_walk(on_cpu, model, one, other, bottom):
    sparsity, ceiling = sorted([one, other])
    bottom = min(bottom, ceiling)
    scores, kept = model
    with patch("kd_prune.pruning.mask.on_cpu", return_value=on_cpu):
        counts = global_counts(scores, kept, sparsity, ceiling, floor=bottom)
    assert counts == global_oracle(scores, kept, sparsity, ceiling, bottom)


@given(models(all_kept=True), st.floats(0, 1), st.floats(0, 1))
def test_global_adds_up_exactly_under_its_ceiling(model, one, other):
    sparsity, ceiling = sorted([one, other])
    scores, kept = model
    counts = global_counts(scores, kept, sparsity, ceiling)
    assert sum(counts.values()) == round(sparsity * sum(s.size for s in scores.values()))
    assert all(counts[name] <= np.ceil(ceiling * s.size) for name, s in scores.items())


@given(TIED, st.floats(0, 1))
def test_global_of_one_tensor_is_layerwise(scores, sparsity):
    masks = {"only": ones(*scores.shape)}
    score = {"only": torch.from_numpy(scores)}.__getitem__
    assert Global()(masks, score, sparsity) == layerwise(masks, score, sparsity)


@pytest.mark.parametrize(
    ("sparsity", "expected"), [(0.25, [0, 1]), (0.5, [1, 1]), (0.75, [2, 1]), (1.0, [2, 2])]
)
def test_global_takes_ties_tensor_by_tensor(sparsity, expected):
    scores = {"a": np.float32([1, 1]), "b": np.float32([0, 1])}
    kept = {"a": np.ones(2, bool), "b": np.ones(2, bool)}
    assert list(global_counts(scores, kept, sparsity).values()) == expected


def test_global_takes_nothing_back():
    kept = {"a": np.zeros(10, bool), "b": np.ones(10, bool)}
    scores = {"a": np.ones(10, np.float32), "b": np.ones(10, np.float32)}
    assert global_counts(scores, kept, 0.3) == {"a": 10, "b": 0}
    assert global_counts(scores, kept, 0.6, ceiling=0.7) == {"a": 10, "b": 2}


BOUNDED = pytest.mark.parametrize(
    "make", [Global, partial(Bounded, allocation=layerwise)], ids=["global", "bounded"]
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
        ({"floor": 0.9, "ceiling": 0.8}, r"floor=0.9 is above ceiling=0.8"),
    ],
)
def test_bounds_are_refused(make, bounds, message):
    with pytest.raises(ValueError, match=message):
        make(**bounds)


@BOUNDED
def test_a_sparsity_above_the_ceiling_is_refused(make):
    masks = {"a": ones(4)}
    with pytest.raises(ValueError, match=r"ceiling=0.5 is below the sparsity asked for, 0.9"):
        make(ceiling=0.5)(masks, lambda name: torch.zeros(4), 0.9)


@given(models(all_kept=True), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_bounds_hold_from_dense(model, one, other, bottom):
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


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_normalized_against_argsort(seed, sparsity):
    rng = np.random.default_rng(seed)
    shapes = {"a": (30, 20), "b": (7, 11), "c": (64, 3)}
    scores = {
        name: (10.0**i * abs(rng.standard_normal(shape))).astype(np.float32)
        for i, (name, shape) in enumerate(shapes.items())
    }
    kept = {name: np.ones(shape, bool) for name, shape in shapes.items()}
    normed = [
        s.ravel().astype(float) / np.sqrt((s.astype(float) ** 2).sum()) for s in scores.values()
    ]
    owner = np.repeat(list(scores), [s.size for s in normed])
    going = owner[np.concatenate(normed).argsort()[: round(sparsity * owner.size)]]
    counts = global_counts(scores, kept, sparsity, normalized=True)
    assert counts == {name: int((going == name).sum()) for name in scores}


@given(models(), st.floats(0, 1), st.integers(-20, 20))
def test_normalized_is_invariant_to_the_scale_of_one_tensor(model, sparsity, exponent):
    scores, kept = model
    scaled = {**scores, "0": scores["0"] * np.float32(2.0**exponent)}
    counts = global_counts(scores, kept, sparsity, normalized=True)
    assert counts == global_counts(scaled, kept, sparsity, normalized=True)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_normalized_takes_scores_whose_squares_have_no_float32(scale):
    scores = {"a": np.float32([1, 2, 3, 4]) * np.float32(scale), "b": np.float32([1, 2, 3, 4])}
    kept = {name: np.ones(4, bool) for name in scores}
    assert global_counts(scores, kept, 0.5, normalized=True) == {"a": 2, "b": 2}


def test_normalized_takes_zeros_first_and_infinite_scores_last():
    scores = {
        "a": np.float32([0, 0]),
        "b": np.float32([3, 4, np.inf]),
        "c": np.float32([1, 1, -np.inf]),
    }
    kept = {name: np.ones(s.shape, bool) for name, s in scores.items()}
    expected = [(1, [0, 0, 1]), (3, [2, 0, 1]), (4, [2, 1, 1]), (7, [2, 2, 3])]
    for total, counts in expected:
        found = global_counts(scores, kept, total / 8, normalized=True)
        assert list(found.values()) == counts


def bounded_oracle(scores, kept, sparsity, bottom, ceiling, found):
    """Clip; then weights one lot after the other, by exact proportion to the room."""
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
def test_bounded_against_its_restatement(model, one, other, bottom, data):
    sparsity, ceiling = sorted([one, other])
    bottom = min(bottom, ceiling)
    scores, kept = model
    found = {name: data.draw(st.integers(0, size)) for name, size in sizes_of(scores).items()}
    allocation = Bounded(allocation=lambda *_: found, floor=bottom, ceiling=ceiling)
    counts = counts_of(allocation, scores, kept, sparsity)
    assert counts == bounded_oracle(scores, kept, sparsity, bottom, ceiling, found)


@given(models(), st.floats(0, 1))
def test_bounded_without_bounds_is_the_allocation_itself(model, sparsity):
    for allocation in (Global(), ERK(), PerType(share={"0": 2.0})):
        bounded = Bounded(allocation=allocation)
        assert counts_of(bounded, *model, sparsity) == counts_of(allocation, *model, sparsity)


def erk_oracle(shapes, sparsity, power=1.0):
    """Densities as the code of RigL has them: those above 1 are made dense, the worst first."""
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


def unread(name):
    raise AssertionError("no score is needed")


@given(LARGER, st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_erk_against_rigl(shapes, sparsity, power):
    masks = {str(i): ones(*shape) for i, shape in enumerate(shapes)}
    counts = ERK(power=power)(masks, unread, sparsity)
    size = np.array([mask.numel() for mask in masks.values()])
    assert sum(counts.values()) == round(sparsity * int(size.sum()))
    # Rounding the total moves a density a little, and the largest remainder its count by one.
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
def test_erk_refuses_a_power(power):
    with pytest.raises(ValueError, match="power="):
        ERK(power=power)


@given(st.lists(SHAPES, min_size=3, max_size=6), st.floats(0, 1), st.data())
def test_per_type_against_its_restatement(shapes, sparsity, data):
    names = [f"{i}.{('attention', 'ffn', 'other')[i % 3]}" for i in range(len(shapes))]
    masks = {name: ones(*shape) for name, shape in zip(names, shapes, strict=True)}
    share = {"*.attention": data.draw(st.floats(0.1, 10)), "*.ffn": data.draw(st.floats(0.1, 10))}
    counts = PerType(share=share)(masks, unread, sparsity)
    groups = [names[0::3], names[1::3], names[2::3]]
    sizes = [sum(masks[name].numel() for name in group) for group in groups]
    weights = [Fraction(w) * n for w, n in zip([*share.values(), 1], sizes, strict=True)]
    stay = apportion_oracle(sum(sizes) - round(sparsity * sum(sizes)), weights, sizes)
    for group, left in zip(groups, stay, strict=True):
        each = [masks[name].numel() for name in group]
        expected = apportion_oracle(left, each, each)
        assert [masks[name].numel() - counts[name] for name in group] == expected
    assert list(counts) == names


def test_per_type_keeps_densities_in_ratio_and_clips_at_dense():
    masks = {"attention": ones(100, 100), "ffn": ones(100, 200)}
    per_type = PerType(share={"attention": 2.0, "ffn": 1.0})
    assert per_type(masks, unread, 0.9) == {"attention": 8500, "ffn": 18500}
    assert per_type(masks, unread, 0.2) == {"attention": 0, "ffn": 6000}


def test_per_type_takes_the_first_pattern_that_matches():
    masks = {"0.attention": ones(10, 10), "1.attention": ones(10, 10)}
    counts = PerType(share={"0.*": 3.0, "*.attention": 1.0})(masks, unread, 0.8)
    assert counts == {"0.attention": 70, "1.attention": 90}


def test_per_type_ranks_within_a_group():
    scores = {"a.0": np.arange(10.0), "a.1": np.arange(10.0) + 5, "b": np.arange(10.0) - 99}
    kept = {name: np.ones(10, bool) for name in scores}
    per_type = PerType(share={"a.*": 1.0}, within=Global())
    assert counts_of(per_type, scores, kept, 0.5) == {"a.0": 8, "a.1": 2, "b": 5}


@pytest.mark.parametrize("share", [{"x.*": 1.0}, {"*": 2.0, "a": 1.0}])
def test_per_type_refuses_a_pattern_without_a_tensor(share):
    pattern = list(share)[-1]
    with pytest.raises(
        ValueError, match=rf"share pattern '{re.escape(pattern)}' matches no tensor"
    ):
        PerType(share=share)({"a": ones(4)}, unread, 0.5)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_per_type_refuses_a_weight(weight):
    with pytest.raises(ValueError, match=r"share\['a'\]="):
        PerType(share={"a": weight})


def test_per_type_refuses_a_list():
    with pytest.raises(TypeError, match="expected pattern → weight"):
        PerType(share=["a"])


EXACT = [
    Global(),
    Global(floor=0.3, ceiling=0.97),
    Global(normalized=True),
    ERK(),
    ERK(power=0.0),
    PerType(share={"0": 3.0}),
    PerType(share={"0": 0.5}, within=Global()),
    Bounded(allocation=layerwise),
    Bounded(allocation=ERK(), floor=0.4, ceiling=0.96),
    Bounded(allocation=PerType(share={"0": 5.0}), floor=0.4),
]


@pytest.mark.parametrize("allocation", EXACT, ids=lambda allocation: type(allocation).__name__)
@given(models(), st.lists(st.floats(0, 0.96), min_size=1, max_size=4).map(sorted))
def test_totals_are_exact_and_masks_nested_along_a_ramp(allocation, model, ramp):
    scores, kept = model
    score = {name: torch.from_numpy(s) for name, s in scores.items()}.__getitem__
    masks = {name: torch.from_numpy(mask) for name, mask in kept.items()}
    size = sum(sizes_of(scores).values())
    for sparsity in ramp:
        gone = {name: pruned_in(mask) for name, mask in masks.items()}
        counts = allocation(masks, score, sparsity)
        assert list(counts) == list(masks)
        assert sum(counts.values()) == max(round(sparsity * size), sum(gone.values()))
        assert all(gone[name] <= counts[name] <= masks[name].numel() for name in masks)
        masks = {name: exact(score(name), counts[name], mask) for name, mask in masks.items()}


@pytest.mark.parametrize(
    "allocation",
    [Global(floor=0.3, ceiling=0.97), Bounded(allocation=ERK(), floor=0.3, ceiling=0.97)],
    ids=lambda allocation: type(allocation).__name__,
)
@given(models(all_kept=True), st.lists(st.floats(0, 0.96), min_size=1, max_size=6).map(sorted))
def test_bounds_hold_along_a_ramp_to_a_weight_per_tensor(allocation, model, ramp):
    scores, kept = model
    score = {name: torch.from_numpy(s) for name, s in scores.items()}.__getitem__
    masks = {name: torch.from_numpy(mask) for name, mask in kept.items()}
    for sparsity in ramp:
        counts = allocation(masks, score, sparsity)
        for name, mask in masks.items():
            least = floor(min(0.3, sparsity) * mask.numel())
            assert least - len(masks) <= counts[name] <= ceil(0.97 * mask.numel())
        masks = {name: exact(score(name), counts[name], mask) for name, mask in masks.items()}


@pytest.mark.parametrize(
    "allocation",
    [ERK(), PerType(share={"*": 3.0}), Bounded(allocation=layerwise), Bounded(allocation=ERK())],
    ids=lambda allocation: type(allocation).__name__,
)
@given(SHAPES, st.integers(2, 5), st.floats(0, 1))
def test_equal_tensors_get_equal_counts(allocation, shape, number, sparsity):
    masks = {str(i): ones(*shape) for i in range(number)}
    counts = allocation(masks, unread, sparsity).values()
    assert max(counts) - min(counts) <= 1


@WAYS
@given(TIED, st.integers(-2, 2), st.sampled_from([0.0, 0.005, 0.3, 0.99]), st.data())
def test_a_threshold_takes_what_lies_at_or_below_it(on_cpu, scores, threshold, least, data):
    kept = data.draw(hnp.arrays(bool, scores.shape))
    most = scores.size - int(least * scores.size) - 1
    wanted = int((~kept).sum()) + int((kept & (scores <= threshold)).sum())
    allocation = Threshold(threshold=float(threshold), least=least)
    score, masks = {"a": torch.from_numpy(scores)}, {"a": torch.from_numpy(kept)}
    with patch("kd_prune.pruning.mask.on_cpu", lambda tensor: on_cpu):
        counts = allocation(masks, score.__getitem__, data.draw(st.floats(0, 1)))
    assert counts == {"a": max(min(wanted, most), int((~kept).sum()))}


@pytest.mark.parametrize("wrong", [{"least": 1.0}, {"least": -0.1}, {"threshold": float("nan")}])
def test_a_threshold_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Threshold(**wrong)
