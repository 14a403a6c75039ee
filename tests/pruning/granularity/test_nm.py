"""n:m sparsity against a walk, and in torch's kernels."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from kd_prune.errors import ConfigError
from kd_prune.pruning import (
    ERK,
    Bounded,
    Global,
    Pruner,
    Schedule,
    Threshold,
    uniform,
)
from kd_prune.pruning.granularity.nm import NM
from kd_prune.pruning.selection import count_pruned

from .problems import DTYPES, WAYS, nm_problems, ones, randn


def taking_a(masks, score, sparsity):
    """A user's own allocation."""
    return {"a": 64, "b": 0}


def nm_oracle(pattern, scores, count, kept):
    """Go by score and index, and prune where the group has more than n weights."""
    of, free = pattern.m, pattern.m - pattern.n
    mask, values = kept.copy().reshape(-1, of), scores.reshape(-1, of)
    at_risk = []
    for group in range(len(mask)):
        alive = sorted((values[group, i], i) for i in range(of) if mask[group, i])
        spare = len(alive) - pattern.n
        at_risk += [(score, group * of + i) for score, i in alive[: max(spare, 0)]]
    more = count - sum(min(int((~row).sum()), free) for row in mask)
    for _, index in sorted(at_risk)[: max(more, 0)]:
        mask.reshape(-1)[index] = False
    return mask.reshape(kept.shape)


@WAYS
@given(nm_problems(), DTYPES)
def test_nm_against_a_walk(on_cpu, problem, dtype):
    pattern, scores, count, kept = problem
    with patch("kd_prune.pruning.selection.on_cpu", return_value=on_cpu):
        mask = pattern(torch.from_numpy(scores).to(dtype), count, torch.from_numpy(kept))
    np.testing.assert_array_equal(mask.numpy(), nm_oracle(pattern, scores, count, kept))


@given(nm_problems())
def test_nm_prunes_the_reachable_count(problem):
    pattern, scores, count, kept = problem
    mask = pattern(torch.from_numpy(scores), count, torch.from_numpy(kept)).numpy()
    free = pattern.m - pattern.n
    in_pattern = np.minimum((~mask).reshape(-1, pattern.m).sum(1), free).sum()
    before = np.minimum((~kept).reshape(-1, pattern.m).sum(1), free).sum()
    assert in_pattern == max(count, before)
    assert pattern.reachable(count, scores.shape) == count
    if kept.all():
        assert (~mask).sum() == count


@given(nm_problems())
def test_nm_at_its_limit_leaves_n_weights_in_every_group(problem):
    pattern, scores, _, kept = problem
    limit = scores.size * (pattern.m - pattern.n) // pattern.m
    mask = pattern(torch.from_numpy(scores), limit, torch.from_numpy(kept)).numpy()
    left = mask.reshape(-1, pattern.m).sum(1)
    np.testing.assert_array_equal(left, np.minimum(kept.reshape(-1, pattern.m).sum(1), pattern.n))


def test_nm_on_ramp_with_changing_weights_reaches_the_pattern():
    kept = ones(6, 16)
    for step, count in enumerate([0, 7, 20, 33, 47, 48]):
        before, kept = kept, NM()(randn(6, 16, seed=step).abs(), count, kept)
        assert not (kept & ~before).any()
        assert (~kept).sum() == count
        assert (kept.view(-1, 4).sum(1) >= 2).all()
    assert (kept.view(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize(("pattern", "final"), [(NM(), "0.5"), (NM(n=1), "0.75")])
def test_nm_final_above_pattern_raises(pattern, final):
    weights = {"a": nn.Parameter(randn(8, 8)), "b": nn.Parameter(randn(8, 8, seed=1))}
    of = {"total_steps": 8, "granularity": pattern}
    message = rf"^granularity=NM.* weights of a: .*reaches sparsity {final} .*take final={final}"
    with pytest.raises(ConfigError, match=message):
        Pruner(weights, Schedule(final=float(final) + 0.02), **of)
    assert count_pruned(pattern(weights["a"].detach(), 64, ones(8, 8))) == float(final) * 64


@pytest.mark.parametrize("allocation", [Global(), Global(normalized=True), Threshold(), taking_a])
def test_nm_allocation_that_may_exceed_pattern_raises(allocation):
    """Even if the current weights would allow it: both tensors have the same scores."""
    weights = {"a": nn.Parameter(randn(8, 8)), "b": nn.Parameter(randn(8, 8))}
    with pytest.raises(ConfigError, match=r"weights of a: .*Global: ceiling=0\.5"):
        Pruner(weights, Schedule(final=0.3), total_steps=8, granularity=NM(), allocation=allocation)


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.45, 0.6])
@pytest.mark.parametrize(
    "allocation",
    [uniform, ERK(power=0.0), Global(ceiling=0.5), Bounded(allocation=Global(), ceiling=0.5)],
)
def test_nm_reaches_pattern_from_any_zeros_and_scores(zeros, allocation):
    weights = {"a": nn.Parameter(randn(8, 8)), "b": nn.Parameter(randn(16, 8, seed=1))}
    with torch.no_grad():
        for weight in weights.values():
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < zeros] = 0
    pruner = Pruner(
        weights,
        Schedule(final=0.5),
        total_steps=20,
        granularity=NM(),
        allocation=allocation,
        keep_zeros=True,
    )
    for step in range(1, 21):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(1.5 if (step % 2) == (name == "a") else 0.5)
        pruner.update(step)
        pruner.project()
    for weight in weights.values():
        left = weight.view(-1, 4).count_nonzero(1)
        assert (left <= 2).all() if zeros else (left == 2).all()


# The conversion checks nothing: weights that violate the pattern would be lost.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_nm_2_4_survives_torchs_compression(dtype):
    weight = randn(64, 128) * 20
    weight = weight.sign() * (weight.abs() + 1)  # no zero in int8 either
    final = NM()(weight.abs(), weight.numel() // 2, ones(64, 128))
    almost = NM()(weight.abs(), weight.numel() // 2 - 1, ones(64, 128))
    for mask, survives in ((final, True), (almost, False)):
        pruned = (weight * mask).to(dtype)
        packed = sparse_semi_structured_from_dense_cutlass(pruned)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(*packed), pruned) == survives


def test_nm_1_2_survives_torchs_compression_in_float32():
    # Integers: decompression copies floats as pairs of halves, and some halves are NaN.
    weight = (randn(32, 64) * 100).round() + 0.5
    mask = NM(n=1, m=2)(weight.abs(), weight.numel() // 2, ones(32, 64))
    packed = sparse_semi_structured_from_dense_cutlass(weight * mask)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(*packed), weight * mask)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's 2:4 kernels need CUDA")
@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor:UserWarning")
def test_nm_2_4_runs_in_torchs_kernel():
    weight = randn(128, 256).cuda().half()
    mask = NM()(weight.abs(), weight.numel() // 2, torch.ones_like(weight, dtype=torch.bool))
    pruned, inputs = weight * mask, randn(64, 256, seed=1).cuda().half()
    sparse = torch.sparse.to_sparse_semi_structured(pruned)
    torch.testing.assert_close(
        nn.functional.linear(inputs, sparse), inputs @ pruned.T, rtol=1e-2, atol=1e-1
    )
