"""Blocks, rows and heads of one matrix."""

import math
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd_prune.pruning.granularity.structured import Heads, Rows

from .problems import DTYPES, WAYS, ones, randn, tile_problems


def tiles_of(granularity, shape):
    """The slices of each tile, row by row."""
    height, width = shape[0], math.prod(shape[1:])
    rows, columns = granularity.tile(shape)
    return [
        (slice(top, top + rows), slice(start, start + columns))
        for top in range(0, height, rows)
        for start in range(0, width, columns)
    ]


def tile_oracle(granularity, scores, count, kept):
    """Remove tiles one by one by increasing mean while that brings the count closer.

    The last stays, unless everything was asked for.
    """
    mask = kept.copy()
    tiles = [tile for tile in tiles_of(granularity, scores.shape) if mask[tile].any()]
    for tile in sorted(tiles, key=lambda tile: scores[tile].astype(float).mean()):  # stable
        gone, cost = int((~mask).sum()), int(mask[tile].sum())
        last = gone + cost == mask.size and count < mask.size
        if abs(gone + cost - count) < abs(gone - count) and not last:
            mask[tile] = False
        else:
            break
    return mask


@WAYS
@given(tile_problems(scattered=True), DTYPES)
def test_tiles_against_removal_one_by_one(on_cpu, problem, dtype):
    granularity, scores, count, kept = problem
    size = math.prod(granularity.tile(scores.shape))
    intact = all(kept[tile].sum() in (0, size) for tile in tiles_of(granularity, scores.shape))
    if intact:  # at half a tile `round` gives the even number of tiles, the oracle the lower
        count = granularity.reachable(count, scores.shape)
    with patch("kd_prune.pruning.selection.on_cpu", return_value=on_cpu):
        mask = granularity(torch.from_numpy(scores).to(dtype), count, torch.from_numpy(kept))
    np.testing.assert_array_equal(mask.numpy(), tile_oracle(granularity, scores, count, kept))


@given(tile_problems())
def test_tiles_pruned_count_equals_reachable(problem):
    granularity, scores, count, kept = problem
    mask = granularity(torch.from_numpy(scores), count, torch.from_numpy(kept)).numpy()
    tiles = tiles_of(granularity, scores.shape)
    size = scores.size // len(tiles)
    assert all(mask[tile].all() or not mask[tile].any() for tile in tiles)
    promised = granularity.reachable(count, scores.shape)
    spared = 1 if count < scores.size else 0
    assert promised == min(round(count / size), len(tiles) - spared) * size
    assert (~mask).sum() == max(promised, (~kept).sum())


@given(st.one_of(tile_problems(), tile_problems(scattered=True)))
def test_tiles_best_are_kept(problem):
    granularity, scores, count, kept = problem
    mask = granularity(torch.from_numpy(scores), count, torch.from_numpy(kept)).numpy()
    alive = [tile for tile in tiles_of(granularity, scores.shape) if kept[tile].any()]
    went = [scores[tile].mean() for tile in alive if not mask[tile].any()]
    stayed = [scores[tile].mean() for tile in alive if mask[tile].any()]
    assert max(went, default=-np.inf) <= min(stayed, default=np.inf)


@given(tile_problems(scattered=True))
def test_tiles_scattered_zeros_are_counted(problem):
    granularity, scores, count, kept = problem
    mask = granularity(torch.from_numpy(scores), count, torch.from_numpy(kept)).numpy()
    size = math.prod(granularity.tile(scores.shape))
    left = sum(mask[tile].any() for tile in tiles_of(granularity, scores.shape))
    if (~kept).sum() <= count:
        assert (~mask).sum() - count <= size / 2
        assert count - (~mask).sum() <= size / 2 or left == 1
    assert left or count == scores.size or not kept.any()


def test_tiles_same_values_in_any_order_are_tied():
    values, orders = randn(32).abs(), torch.Generator().manual_seed(1)
    rows = torch.stack([values[torch.randperm(32, generator=orders)] for _ in range(20)])
    assert len(rows.sum(1).unique()) > 1  # the sums differ in float32
    for granularity, scores in ((Rows(), rows), (Heads(size=1, axis=1), rows.T)):
        mask = granularity(scores, 10 * 32, ones(*scores.shape))
        assert mask.any(1 - list(scores.shape).index(20)).tolist() == [False] * 10 + [True] * 10
