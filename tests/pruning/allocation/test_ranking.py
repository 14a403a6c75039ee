"""Global and Threshold against walks over all scores."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kd_prune.errors import ConfigError
from kd_prune.pruning.allocation import (
    Global,
    Threshold,
    uniform,
)

from .problems import TIED, counts_of, limits_oracle, models, ones

# The path of other devices, which also runs on the CPU.
WAYS = pytest.mark.parametrize("on_cpu", [True, False], ids=["numpy", "torch"])


def global_oracle(scores, kept, sparsity, ceiling, bottom=0.0):
    """Prune the floors, then go by score, tensor and index, and prune below the ceiling."""
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


def global_counts(scores, kept, sparsity, ceiling=1.0, **arguments):
    return counts_of(Global(ceiling=ceiling, **arguments), scores, kept, sparsity)


@WAYS
@given(models(), st.floats(0, 1), st.floats(0, 1))
def test_global_against_a_walk(on_cpu, model, one, other):
    sparsity, ceiling = sorted([one, other])
    scores, kept = model
    with patch("kd_prune.pruning.selection.on_cpu", return_value=on_cpu):
        counts = global_counts(scores, kept, sparsity, ceiling)
    assert counts == global_oracle(scores, kept, sparsity, ceiling)


@WAYS
@given(models(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_global_with_a_floor_against_a_walk(on_cpu, model, one, other, bottom):
    sparsity, ceiling = sorted([one, other])
    bottom = min(bottom, ceiling)
    scores, kept = model
    with patch("kd_prune.pruning.selection.on_cpu", return_value=on_cpu):
        counts = global_counts(scores, kept, sparsity, ceiling, floor=bottom)
    assert counts == global_oracle(scores, kept, sparsity, ceiling, bottom)


@given(models(all_kept=True), st.floats(0, 1), st.floats(0, 1))
def test_global_with_ceiling_has_exact_total(model, one, other):
    sparsity, ceiling = sorted([one, other])
    scores, kept = model
    counts = global_counts(scores, kept, sparsity, ceiling)
    assert sum(counts.values()) == round(sparsity * sum(s.size for s in scores.values()))
    assert all(counts[name] <= np.ceil(ceiling * s.size) for name, s in scores.items())


@given(TIED, st.floats(0, 1))
def test_global_one_tensor_equals_uniform(scores, sparsity):
    masks = {"only": ones(*scores.shape)}
    score = {"only": torch.from_numpy(scores)}.__getitem__
    assert Global()(masks, score, sparsity) == uniform(masks, score, sparsity)


@pytest.mark.parametrize(
    ("sparsity", "expected"), [(0.25, [0, 1]), (0.5, [1, 1]), (0.75, [2, 1]), (1.0, [2, 2])]
)
def test_global_ties_are_pruned_tensor_by_tensor(sparsity, expected):
    scores = {"a": np.float32([1, 1]), "b": np.float32([0, 1])}
    kept = {"a": np.ones(2, bool), "b": np.ones(2, bool)}
    assert list(global_counts(scores, kept, sparsity).values()) == expected


def test_global_counts_do_not_fall_below_pruned():
    kept = {"a": np.zeros(10, bool), "b": np.ones(10, bool)}
    scores = {"a": np.ones(10, np.float32), "b": np.ones(10, np.float32)}
    assert global_counts(scores, kept, 0.3) == {"a": 10, "b": 0}
    assert global_counts(scores, kept, 0.6, ceiling=0.7) == {"a": 10, "b": 2}


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
def test_normalized_scores_with_underflowing_squares_are_ranked(scale):
    scores = {"a": np.float32([1, 2, 3, 4]) * np.float32(scale), "b": np.float32([1, 2, 3, 4])}
    kept = {name: np.ones(4, bool) for name in scores}
    assert global_counts(scores, kept, 0.5, normalized=True) == {"a": 2, "b": 2}


def test_normalized_zeros_are_pruned_first_and_infinite_scores_last():
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


@WAYS
@given(TIED, st.integers(-2, 2), st.sampled_from([0.0, 0.005, 0.3, 0.99]), st.data())
def test_threshold_prunes_scores_at_or_below_it(on_cpu, scores, threshold, min_density, data):
    kept = data.draw(hnp.arrays(bool, scores.shape))
    most = scores.size - int(min_density * scores.size) - 1
    wanted = int((~kept).sum()) + int((kept & (scores <= threshold)).sum())
    allocation = Threshold(threshold=float(threshold), min_density=min_density)
    score, masks = {"a": torch.from_numpy(scores)}, {"a": torch.from_numpy(kept)}
    with patch("kd_prune.pruning.selection.on_cpu", lambda tensor: on_cpu):
        counts = allocation(masks, score.__getitem__, data.draw(st.floats(0, 1)))
    assert counts == {"a": max(min(wanted, most), int((~kept).sum()))}


@pytest.mark.parametrize(
    "wrong", [{"min_density": 1.0}, {"min_density": -0.1}, {"threshold": float("nan")}]
)
def test_threshold_out_of_range_raises(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Threshold(**wrong)
