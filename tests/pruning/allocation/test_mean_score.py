"""MeanScore: densities by mean score within every kind of matrix, against a reimplementation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.errors import ConfigError
from kd_prune.pruning import MeanScore, Pruner, Schedule, SoftMovement

from .problems import apportion_oracle, ones


def scores_of(means, shape):
    """Scores around their mean, which is exact in float32."""
    draw = np.random.default_rng(0).integers(-3, 4, size=shape) / 64
    return {
        n: torch.tensor(mean + draw - draw.mean(), dtype=torch.float32) for n, mean in means.items()
    }


def test_densities_are_the_formula_of_the_paper():
    """v_l = v · L · R_l / Σ R, as long as none reaches 1."""
    means = {"a.0.query": 0.5, "a.1.query": 0.25, "a.2.query": 0.75, "a.0.ffn": 0.1, "a.1.ffn": 0.3}
    scores = scores_of(means, (40, 50))
    counts = MeanScore()({n: ones(40, 50) for n in means}, scores.get, 0.9)
    kept = {name: 2000 - count for name, count in counts.items()}
    assert kept == {
        "a.0.query": 200,
        "a.1.query": 100,
        "a.2.query": 300,
        "a.0.ffn": 100,
        "a.1.ffn": 300,
    }


def test_matrix_at_density_one_leaves_the_rest_to_the_others():
    scores = scores_of({"0.q": 0.9, "1.q": 0.05, "2.q": 0.05}, (10, 10))
    counts = MeanScore()({n: ones(10, 10) for n in scores}, scores.get, 0.5)
    assert counts == {"0.q": 0, "1.q": 75, "2.q": 75}


@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), st.floats(0, 1), st.integers(0, 2**31))
def test_against_reimplementation(means, sparsity, seed):
    draw = np.random.default_rng(seed)
    names = ["0.q", "1.q", "0.f", "1.f"]
    shapes = [(5, 7), (5, 7), (6, 10), (6, 10)]
    scores = {
        n: torch.tensor(draw.uniform(0, mean, shape))
        for n, mean, shape in zip(names, means, shapes, strict=True)
    }
    counts = MeanScore()(
        {n: ones(*s) for n, s in zip(names, shapes, strict=True)}, scores.get, sparsity
    )
    sizes = [70, 120]
    totals = apportion_oracle(190 - round(sparsity * 190), sizes, sizes)
    for pair, total, size in zip((names[:2], names[2:]), totals, (35, 60), strict=True):
        weights = [Fraction(float(scores[n].double().mean())) for n in pair]
        expected = apportion_oracle(total, weights, [size, size])
        assert [size - counts[n] for n in pair] == expected
    assert list(counts) == names


def test_scores_without_a_positive_mean_share_equally_or_are_refused():
    zeros = {n: torch.zeros(10, 10) for n in ("0.q", "1.q")}
    masks = {n: ones(10, 10) for n in zeros}
    assert MeanScore()(masks, zeros.get, 0.9) == {"0.q": 90, "1.q": 90}
    for bad in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"mean score of 0\.q is"):
            MeanScore()(masks, {n: torch.full((10, 10), bad) for n in zeros}.get, 0.9)


def test_a_matrix_that_was_not_observed_stays_dense():
    scores = {"0.q": torch.full((10, 10), 0.01), "1.q": torch.full((10, 10), float("inf"))}
    masks = {n: ones(10, 10) for n in scores}
    assert MeanScore()(masks, scores.get, 0.5) == {"0.q": 99, "1.q": 1}


def test_in_a_pruner_layers_with_higher_scores_stay_denser():
    weights = {f"{i}.q": torch.nn.Parameter(torch.ones(10, 10)) for i in range(2)}
    pruner = Pruner(
        weights,
        Schedule(final=0.8),
        total_steps=10,
        criterion=SoftMovement(penalty=0.0, rate=0.5),
        allocation=MeanScore(),
        regrow=True,
        allow_empty=True,
    )
    for _ in range(10):
        pruner.observe({"0.q": -torch.ones(10, 10), "1.q": torch.ones(10, 10)})
    pruner.update(10)
    kept = [int(mask.sum()) for mask in pruner.masks.values()]
    assert sum(kept) == 40
    assert kept[0] == 40 - kept[1] > 35


def test_weights_that_are_kept_in_any_case_do_not_count():
    """The best weight of a slice that a norm divides scores infinity."""
    scores = {"0.query": torch.tensor([1.0, 3.0]), "1.query": torch.tensor([2.0, 2.0])}
    masks = {name: torch.ones(2, dtype=torch.bool) for name in scores}
    more = {name: torch.cat([s, torch.tensor([torch.inf])]) for name, s in scores.items()}
    assert MeanScore()(masks, more.get, 0.5) == MeanScore()(masks, scores.get, 0.5)
