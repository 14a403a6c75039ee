"""Properties of all granularities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kd_prune.errors import ConfigError
from kd_prune.pruning import (
    Global,
    Pruner,
    Schedule,
    unstructured,
)
from kd_prune.pruning.granularity import (
    Granularity,
    compute_masks,
    pool_scores,
    reachable_counts,
)
from kd_prune.pruning.granularity.heads import AttentionHeads
from kd_prune.pruning.granularity.nm import NM
from kd_prune.pruning.granularity.structured import Block, Heads, Rows

from .problems import nm_problems, ones, randn, tile_problems


@given(st.one_of(nm_problems(), tile_problems(), tile_problems(scattered=True)), st.data())
def test_granularity_masks_are_nested_monotone_and_deterministic(problem, data):
    granularity, scores, count, kept = problem
    scores, kept = torch.from_numpy(scores), torch.from_numpy(kept)
    as_given = scores.clone(), kept.clone()
    fewer = data.draw(st.integers(0, count))
    few, many = granularity(scores, fewer, kept), granularity(scores, count, kept)
    assert not (few & ~kept).any()
    assert not (many & ~few).any()
    assert granularity.reachable(fewer, kept.shape) <= granularity.reachable(count, kept.shape)
    assert torch.equal(many, granularity(scores, count, kept))
    assert torch.equal(scores, as_given[0])
    assert torch.equal(kept, as_given[1])


@given(st.one_of(nm_problems(), tile_problems()), st.data())
def test_granularity_two_steps_equal_one(problem, data):
    granularity, scores, count, kept = problem
    scores, kept = torch.from_numpy(scores), torch.from_numpy(kept)
    first = granularity(scores, data.draw(st.integers(0, count)), kept)
    assert torch.equal(granularity(scores, count, first), granularity(scores, count, kept))


@pytest.mark.parametrize(
    "granularity",
    [
        NM(),
        NM(n=1, m=3),
        Block(rows=2, columns=9),
        Rows(),
        Heads(size=4),
        Heads(size=6, axis=1),
    ],
    ids=str,
)
def test_convolutions_are_flattened(granularity):
    scores = randn(8, 4, 3, 3).abs()
    flat = granularity(scores.flatten(1), 100, ones(8, 36)).view(8, 4, 3, 3)
    assert torch.equal(granularity(scores, 100, ones(8, 4, 3, 3)), flat)
    strided = scores.to(memory_format=torch.channels_last)
    kept = ones(8, 4, 3, 3).to(memory_format=torch.channels_last)
    assert torch.equal(granularity(strided, 100, kept), flat)
    assert isinstance(granularity, Granularity)
    assert granularity.broadcast_scores(scores).shape == scores.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NM(n=0), "n=0: expected a positive integer"),
        (lambda: NM(n=4), "n=4: expected less than m=4"),
        (lambda: NM(m=4.0), "m=4.0: expected a positive integer"),
        (lambda: Block(rows=0), "rows=0"),
        (lambda: Block(columns=True), "columns=true"),
        (lambda: Heads(size=-1), "size=-1"),
        (lambda: Heads(axis=2), "axis=2: expected 0"),
        (lambda: AttentionHeads(size=0), "size=0"),
        (lambda: AttentionHeads(groups={"*.q": 0}), "expected a list of mappings"),
        (
            lambda: AttentionHeads(groups=[{"q": 0}]),
            r"groups='q': expected a pattern with one '\*'",
        ),
        (
            lambda: AttentionHeads(groups=[{"*.q": 2}]),
            r"groups\[\*\.q\]=2: expected an axis, 0 or 1",
        ),
    ],
)
def test_granularity_argument_out_of_range_raises(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("granularity", "shape", "message"),
    [
        (NM(), (4, 6), r"m=4: (the.name: )?does not divide the 6 inputs of shape \(4, 6\)"),
        (NM(), (4, 1, 3, 3), "m=4: (the.name: )?does not divide the 9 inputs"),
        (Block(), (32, 40), r"tiles of 32 × 32 do not divide .* shape \(32, 40\)"),
        (Heads(size=3), (4, 6), "tiles of 3 × 6"),
        (Heads(size=4, axis=1), (4, 6), "tiles of 4 × 4"),
        (NM(), (4,), r"shape \(4,\): expected two dimensions"),
        (Rows(), (4,), r"shape \(4,\): expected two dimensions"),
    ],
)
def test_granularity_unsuitable_shape_raises(granularity, shape, message):
    with pytest.raises(ConfigError, match=message):
        granularity(torch.zeros(shape), 0, ones(*shape))
    with pytest.raises(ConfigError, match=message) as caught:
        reachable_counts(granularity, {"the.name": shape}, {"the.name": 0})
    assert caught.value.expected.startswith("the.name: ")


@pytest.mark.parametrize(
    ("granularity", "final", "got"),
    [(Rows(), 0.95, 0.875), (Block(), 0.1, 0.0), (Block(), 0.9, 0.75)],
)
def test_pruner_final_far_from_reachable_warns(granularity, final, got):
    weight = nn.Parameter(randn(8, 16) if isinstance(granularity, Rows) else randn(64, 64))
    with pytest.warns(UserWarning, match=rf"reaches sparsity {got:g} where"):
        Pruner({"weight": weight}, Schedule(final=final), total_steps=8, granularity=granularity)


@pytest.mark.parametrize(
    ("granularity", "final", "got"),
    [(NM(), 0.5, 0.5), (Block(rows=2, columns=4), 0.7, 0.6875), (Rows(), 0.7, 0.75)],
)
def test_granularity_in_pruner_reaches_expected_sparsity(granularity, final, got):
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    pruner = Pruner(
        {"weight": layer.weight},
        Schedule(final=final),
        total_steps=8,
        updates=4,
        granularity=granularity,
    )
    for step in range(1, 9):
        with torch.no_grad():
            layer.weight.add_(0.1 * randn(8, 16, seed=step))
        pruner.update(step)
        pruner.project()
    assert pruner.sparsity == got
    assert pruner.sparsity == granularity.reachable(round(final * 128), (8, 16)) / 128
    if isinstance(granularity, NM):
        assert (pruner.masks["weight"].view(-1, 4).sum(1) == 2).all()


def test_global_ranks_mean_scores_of_groups():
    weights = {"a": randn(4, 8).abs(), "b": 0.5 + randn(4, 8, seed=1).abs(), "c": randn(2, 8).abs()}
    masks = {name: ones(*weight.shape) for name, weight in weights.items()}
    granularity = Rows()
    counts = Global()(masks, pool_scores(granularity, masks, weights.get), 0.5)
    new = dict(compute_masks(granularity, masks, weights.get, counts))
    rows = torch.cat([weight.mean(1) for weight in weights.values()])
    expected = rows > rows.sort().values[4]  # 5 of 10 rows
    assert torch.equal(torch.cat([new[name].any(1) for name in weights]), expected)
    assert counts == reachable_counts(granularity, {n: m.shape for n, m in masks.items()}, counts)


def test_compute_masks_plain_function_is_called_per_tensor():
    asked = []

    def score(name):
        asked.append(name)
        return torch.tensor([[2.0, 1.0]])

    masks = {"a": ones(1, 2), "b": ones(1, 2)}
    assert pool_scores(unstructured, masks, score) is score
    news = compute_masks(unstructured, masks, score, {"a": 1, "b": 0})
    name, mask = next(news)
    assert (name, mask.tolist(), asked) == ("a", [[True, False]], ["a"])
    assert [name for name, _ in news] == ["b"]
