"""Allocations by score: one threshold for all tensors, computed or given."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kd_prune.pruning.allocation.bounds import check_bounds, count_limits
from kd_prune.pruning.checks import check, check_fraction
from kd_prune.pruning.selection import (
    Counts,
    Masks,
    Score,
    compare,
    count_pruned,
    count_true,
    kth_smallest,
    rankable,
    unstructured,
)


@dataclass(frozen=True, kw_only=True)
class Global:
    """One ranking over all tensors: the lowest ``round(sparsity · N)`` of the N weights in scope.

    Args:
        ceiling: Highest sparsity of a tensor: at most ``⌈ceiling · n⌉`` of its n weights are
            pruned, and other tensors make up for the difference. With 1.0 a global ranking may
            prune all weights of a tensor.
        floor: Lowest sparsity of a tensor: at least ``⌊min(floor, sparsity) · n⌋`` weights are
            pruned, so that all tensors are pruned alike while a ramp is below the floor. `Bounded`
            says when floors are lowered.
        normalized: Rank ``score / ‖scores of its tensor‖₂``, so that tensors of small weights are
            not pruned first. Infinite scores are left out of the norm.

    Raises:
        ConfigError: `ceiling` or `floor` outside [0, 1], `floor` above `ceiling`, or (when called)
            `ceiling` below the target sparsity.

    Source: Han et al. 2015 (arXiv 1506.02626) for the ranking; `normalized` is ``normed_magnitude``
    of Intel's NNCF.

    >>> scores = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([5.0, 6.0, 7.0, 8.0])}
    >>> masks = {name: torch.ones(4, dtype=torch.bool) for name in scores}
    >>> Global()(masks, scores.get, 0.5)
    {'a': 4, 'b': 0}
    >>> Global(ceiling=0.75)(masks, scores.get, 0.5)
    {'a': 3, 'b': 1}
    >>> Global(floor=0.5)(masks, scores.get, 0.75)
    {'a': 4, 'b': 2}
    >>> Global(normalized=True)(masks, scores.get, 0.5)
    {'a': 2, 'b': 2}
    """

    ceiling: float = 1.0
    floor: float = 0.0
    normalized: bool = False

    def __post_init__(self) -> None:
        check_bounds(self.floor, self.ceiling)

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Return counts that add up to ``round(sparsity · N)``, or to those already pruned.

        Ties at the threshold are pruned tensor by tensor, in order.
        """
        low, high, total = count_limits(masks, sparsity, self.floor, self.ceiling)
        to_prune = total - sum(low.values())
        if not to_prune:
            return low
        if self.normalized:
            score = _normalized(score)
        ranked = masks  # of a sharded model, tensors are gathered one at a time
        if self.floor or any(high[name] < mask.numel() for name, mask in masks.items()):
            ranked = {name: self._ranked(masks[name], name, score, low, high) for name in masks}
        threshold = kth_smallest(lambda: ((score(name), ranked[name]) for name in masks), to_prune)

        def count(comparison: Callable[[Any, float], Any], name: str) -> int:
            return count_true(compare(score(name), comparison, threshold, ranked[name]))

        added = {name: count(operator.le, name) for name in masks}
        surplus = sum(added.values()) - to_prune
        for name in reversed(added):
            if surplus:
                ties = min(surplus, added[name] - count(operator.lt, name))
                added[name] -= ties
                surplus -= ties
        return {name: low[name] + added[name] for name in masks}

    def _ranked(self, kept: Tensor, name: str, score: Score, low: Counts, high: Counts) -> Tensor:
        """Mask the kept weights that neither the floor prunes nor the ceiling protects."""
        if self.floor:
            kept = unstructured(score(name), low[name], kept)
        if high[name] < kept.numel():
            kept = kept & ~unstructured(score(name), high[name], kept)
        return kept


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Prune every weight whose score is at most `threshold`; the schedule's sparsity is ignored.

    The schedule only says at which steps masks are updated, and the resulting sparsity is counted.
    Made for `SoftMovement`, whose penalty decides how many scores fall below the threshold; with
    regrowth, weights whose score rises above it return.

    Args:
        threshold: τ; for `SoftMovement` in (0, 1), the range of its scores.
        min_density: Of a tensor's n weights, the ``⌊min_density · n⌋ + 1`` highest scores are kept
            in any case.

    Raises:
        ConfigError: `min_density` outside [0, 1), `threshold` not finite.

    Source: Sanh et al. 2020 (arXiv 2005.07683), section 4.3; `min_density` is from their code.
    There the threshold itself rises with the schedule, from 0.

    >>> scores = {"a": torch.tensor([0.05, 0.1, 0.5, 0.6]), "b": torch.zeros(4)}
    >>> masks = {name: torch.ones(4, dtype=torch.bool) for name in scores}
    >>> Threshold()(masks, scores.get, 0.75)
    {'a': 2, 'b': 3}
    """

    threshold: float = 0.1
    min_density: float = 0.005

    def __post_init__(self) -> None:
        check("threshold", self.threshold, math.isfinite(self.threshold), "a finite number")
        check_fraction("min_density", self.min_density, closed=False)

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Return the count of weights pruned already or with a score at or below the threshold."""
        return {name: self._count(mask, score(name)) for name, mask in masks.items()}

    def _count(self, kept: Tensor, scores: Tensor) -> int:
        below = count_true(compare(rankable(scores), operator.le, self.threshold, kept))
        most = kept.numel() - (math.floor(self.min_density * kept.numel()) + 1)
        pruned = count_pruned(kept)
        return max(pruned, min(pruned + below, most))


def _normalized(score: Score) -> Score:
    """Divide scores by the L2 norm of their tensor; scores that are all 0 are left unchanged."""

    @cache
    def norm(name: str) -> float:
        scores = score(name).detach()
        finite = scores.where(scores.isfinite(), torch.zeros_like(scores))
        largest = float(finite.abs().max())
        # Scaled first, because squares of small scores (second order) would underflow to 0.
        return float(torch.linalg.vector_norm(finite / largest)) * largest if largest else 1.0

    return lambda name: score(name) / norm(name)
