"""Lower and upper bounds on the sparsity of every tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kd_prune.errors import ConfigError
from kd_prune.pruning.allocation.apportion import apportion
from kd_prune.pruning.allocation.base import Allocation
from kd_prune.pruning.checks import check_fraction
from kd_prune.pruning.selection import Counts, Masks, Score, count_pruned, num_pruned


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """Another allocation with a lower and an upper bound on the sparsity of every tensor.

    Counts are clipped to ``⌊min(floor, sparsity) · n⌋ … ⌈ceiling · n⌉``. The difference to the
    total ``round(sparsity · N)`` is then distributed over all tensors: additional weights in
    proportion to the distance from the ceiling, or fewer in proportion to the distance from the
    floor.

    Floors are lowered where weights pruned earlier in other tensors use up the total; on a ramp
    this concerns a few weights.

    Args:
        allocation: The allocation to bound. The ratios of its counts matter, not their total.
        floor: Lowest sparsity of a tensor.
        ceiling: Highest sparsity of a tensor.

    Raises:
        ConfigError: `ceiling` or `floor` outside [0, 1], `floor` above `ceiling`, or (when called)
            `ceiling` below the target sparsity.

    >>> import torch
    >>> from kd_prune.pruning import ERK
    >>> masks = {"a": torch.ones(2, 5, dtype=torch.bool), "b": torch.ones(30, 30, dtype=torch.bool)}
    >>> ERK()(masks, lambda name: torch.empty(0), 0.9)
    {'a': 0, 'b': 819}
    >>> Bounded(allocation=ERK(), floor=0.5)(masks, lambda name: torch.empty(0), 0.9)
    {'a': 5, 'b': 814}
    """

    allocation: Allocation
    floor: float = 0.0
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self.floor, self.ceiling)

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Return counts within the bounds that add up to the exact total."""
        low, high, total = count_limits(masks, sparsity, self.floor, self.ceiling)
        proposed = self.allocation(masks, score, sparsity)
        counts = {name: min(max(proposed[name], low[name]), high[name]) for name in masks}
        difference = total - sum(counts.values())
        sign, limits = (1, high) if difference > 0 else (-1, low)
        room = [abs(limits[name] - counts[name]) for name in masks]
        changes = apportion(abs(difference), weights=room, limits=room)
        return {
            name: counts[name] + sign * change for name, change in zip(masks, changes, strict=True)
        }


def count_limits(
    masks: Masks, sparsity: float, floor: float, ceiling: float
) -> tuple[Counts, Counts, int]:
    """Return the lowest and highest count of each tensor, and the total, which lies between."""
    if sparsity > ceiling:
        raise ConfigError(
            "allocation.ceiling",
            ceiling,
            f"is below the sparsity asked for, {sparsity}",
            "raise it",
        )
    sizes = {name: mask.numel() for name, mask in masks.items()}
    pruned = {name: count_pruned(mask) for name, mask in masks.items()}
    total = max(num_pruned(sparsity, sum(sizes.values())), sum(pruned.values()))
    high = {name: max(pruned[name], math.ceil(ceiling * size)) for name, size in sizes.items()}
    # Rounded down, so that the floors alone never exceed the total.
    floors = {name: math.floor(min(floor, sparsity) * size) for name, size in sizes.items()}
    missing = [max(floors[name] - pruned[name], 0) for name in masks]
    budget = min(sum(missing), total - sum(pruned.values()))
    added = apportion(budget, weights=missing, limits=missing)
    low = {name: pruned[name] + n for name, n in zip(masks, added, strict=True)}
    return low, high, total


def check_bounds(floor: float, ceiling: float) -> None:
    """Raise ConfigError unless 0 ≤ floor ≤ ceiling ≤ 1."""
    check_fraction("ceiling", ceiling, closed=True)
    check_fraction("floor", floor, closed=True)
    if floor > ceiling:
        hint = "lower the floor or raise the ceiling"
        raise ConfigError("floor", floor, f"is above ceiling={ceiling}", hint)
