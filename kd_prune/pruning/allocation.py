"""How a target is shared between tensors: how many weights of each are pruned.

An `Allocation` is ``(masks, score, sparsity) → counts``. Of n weights in a tensor and N in all,
those here (but `layerwise`, which rounds per tensor) prune ``round(sparsity · N)`` exactly, or what
is pruned already if that is more. Masks are nested: no count is below what its tensor has lost.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kd_prune.pruning.mask import (
    Allocation,
    Counts,
    Masks,
    Score,
    count_of,
    count_true,
    exact,
    hits,
    nth_smallest,
    pruned_in,
    rankable,
)
from kd_prune.pruning.schedule import check_fraction


def layerwise(masks: Masks, score: Score, sparsity: float) -> Counts:
    """Every tensor alike: ``round(sparsity · n)`` of each.

    >>> layerwise({"a": torch.ones(2, 5, dtype=torch.bool)}, lambda name: torch.empty(0), 0.5)
    {'a': 5}
    """
    return {name: count_of(sparsity, mask.numel()) for name, mask in masks.items()}


def share_out(total: int, weights: Sequence[float | Fraction], limits: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to `weights`, none above its limit, that add up to `total`.

    They are ``min(limit, λ · weight)`` with the one λ that makes the sum right, rounded down; what
    that leaves goes one by one to the largest remainders, of equal ones to the first. All in exact
    arithmetic: equal weights stay equal.

    Args:
        total: What is shared out, 0 or more.
        weights: Finite, not negative.
        limits: One for each weight.

    Raises:
        ValueError: `total` is above the sum of the limits of those with a weight above 0.

    Source: Hamilton's method of apportionment, here with limits.

    >>> share_out(10, weights=[1, 1, 2], limits=[10, 10, 10])
    [3, 2, 5]
    >>> share_out(10, weights=[1, 1, 2], limits=[10, 10, 4])
    [3, 3, 4]
    """
    shares = [Fraction(0)] * len(weights)
    exactly = [Fraction(weight) for weight in weights]
    takers = [i for i, weight in enumerate(weights) if weight > 0]
    if total > (most := sum(limits[i] for i in takers)):
        raise ValueError(
            f"total={total}: those with a weight above 0 take {most} at most; raise their limits, "
            "or give weights to others"
        )
    takers.sort(key=lambda i: limits[i] / exactly[i])  # the order in which a rising λ meets them
    left, weight_left = Fraction(total), sum((exactly[i] for i in takers), Fraction(0))
    for i in takers:
        shares[i] = min(Fraction(limits[i]), left * exactly[i] / weight_left)
        left -= shares[i]
        weight_left -= exactly[i]
    whole = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: whole[i] - shares[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


@dataclass(frozen=True, kw_only=True)
class Global:
    """One threshold for all tensors together: ``round(sparsity · N)`` of the N weights in scope.

    Args:
        ceiling: No tensor of n weights loses more than ``⌈ceiling · n⌉``; what it is spared is
            taken from the others. At 1.0 a raw global ranking may empty a tensor.
        floor: None loses less than ``⌊min(floor, sparsity) · n⌋``, so that on a ramp below the
            floor all tensors are pruned alike. See `Bounded` for when floors yield.
        normalized: Rank ``score / ‖scores of its tensor‖₂``, so that tensors of small weights are
            not taken for unimportant ones. Infinite scores are left out of the norm.

    Raises:
        ValueError: `ceiling` or `floor` outside [0, 1], `floor` above `ceiling`, or (when called)
            `ceiling` below the sparsity asked for.

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
        """Check the bounds."""
        _check_bounds(self.floor, self.ceiling)

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Counts per tensor that add up to ``round(sparsity · N)`` exactly.

        They add up to more only where more is pruned already. Ties at the threshold are taken
        tensor by tensor, in order.
        """
        low, high, total = _limits(masks, sparsity, self.floor, self.ceiling)
        wanted = total - sum(low.values())
        if not wanted:
            return low
        if self.normalized:
            score = _normalized(score)
        at_risk = {name: self._at_risk(masks[name], name, score, low, high) for name in masks}
        threshold = nth_smallest(lambda: ((score(name), at_risk[name]) for name in masks), wanted)

        def found(compare: Callable[[Any, float], Any], name: str) -> int:
            return count_true(hits(score(name), compare, threshold, at_risk[name]))

        more = {name: found(operator.le, name) for name in masks}
        surplus = sum(more.values()) - wanted
        for name in reversed(more):
            if surplus:
                spared = min(surplus, more[name] - found(operator.lt, name))
                more[name] -= spared
                surplus -= spared
        return {name: low[name] + more[name] for name in masks}

    def _at_risk(self, kept: Tensor, name: str, score: Score, low: Counts, high: Counts) -> Tensor:
        """The kept weights that neither go with the floor nor stay with the ceiling."""
        if self.floor:
            kept = exact(score(name), low[name], kept)
        if high[name] < kept.numel():
            kept = kept & ~exact(score(name), high[name], kept)
        return kept


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """Any allocation, with a floor and a ceiling for every tensor.

    Counts are clipped to ``⌊min(floor, sparsity) · n⌋ … ⌈ceiling · n⌉``. What the total
    ``round(sparsity · N)`` then lacks is taken from all tensors in proportion to their room below
    the ceiling; what it has too much is given back in proportion to their room above the floor.

    Floors yield where weights that are gone already, in other tensors, leave too little of the
    total; on a ramp that is a matter of a few weights.

    Args:
        allocation: What is bounded. Of its counts the ratios matter: the total is made exact.
        floor: Least sparsity of a tensor.
        ceiling: Greatest sparsity of a tensor.

    Raises:
        ValueError: `ceiling` or `floor` outside [0, 1], `floor` above `ceiling`, or (when called)
            `ceiling` below the sparsity asked for.

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
        """Check the bounds."""
        _check_bounds(self.floor, self.ceiling)

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Counts per tensor within the bounds, with the exact total."""
        low, high, total = _limits(masks, sparsity, self.floor, self.ceiling)
        found = self.allocation(masks, score, sparsity)
        counts = {name: min(max(found[name], low[name]), high[name]) for name in masks}
        lacking = total - sum(counts.values())
        sign, ends = (1, high) if lacking > 0 else (-1, low)
        room = [abs(ends[name] - counts[name]) for name in masks]
        shares = share_out(abs(lacking), weights=room, limits=room)
        return {
            name: counts[name] + sign * share for name, share in zip(masks, shares, strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class ERK:
    """Erdős–Rényi kernel: small and narrow tensors stay denser than large ones.

    The density of a tensor of dimensions ``d₁ … d_k`` is ``min(1, ε · ((d₁ + … + d_k) / (d₁ · … ·
    d_k))^power)``, with the ε that makes the total exact: tensors that would be more than dense
    stay dense, and the others pay for it. Of a matrix with `power` 1 that is, below density 1,
    the same number of weights left per row plus column, whatever the sizes.

    Args:
        power: How unlike the densities are; 0: all alike.

    Raises:
        ValueError: `power` negative or not finite.

    Source: Evci et al. 2020, arXiv 1911.11134, section 3 (1); `power` is ``erk_power_scale`` of
    their code.

    >>> masks = {"a": torch.ones(4, 4, dtype=torch.bool), "b": torch.ones(8, 8, dtype=torch.bool)}
    >>> ERK()(masks, lambda name: torch.empty(0), 0.7)
    {'a': 8, 'b': 48}
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        """Check the power."""
        if not 0.0 <= self.power < math.inf:
            raise ValueError(
                f"power={self.power}: expected a finite number of 0 or more; 1 is the paper's, "
                "0 prunes all tensors alike"
            )

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Counts per tensor with the exact total; no score is asked for."""
        return _by_density(masks, [self._density(mask) for mask in masks.values()], sparsity)

    def _density(self, mask: Tensor) -> float:
        """The tensor's density relative to others."""
        ratio: float = (sum(mask.shape) / mask.numel()) ** self.power
        return ratio


@dataclass(frozen=True, kw_only=True)
class PerType:
    """Budgets by kind of tensor: densities of groups of tensors in given ratios.

    The density of a group is ``min(1, ε · weight)``, with the ε that makes the total exact, at
    every sparsity of a ramp. With weights of 2 and 1, attention keeps twice the share of its
    weights that feed-forward matrices keep of theirs.

    Args:
        share: Shell glob over tensor names (``*`` crosses dots) → weight, above 0. The first
            pattern that matches counts; tensors that none matches have weight 1, as one group.
        within: How a group shares its part between its tensors; None: all alike. The total is exact
            if this one's is.

    Raises:
        TypeError: `share` is no mapping.
        ValueError: A weight is not above 0 and finite, or (when called) a pattern is left without a
            tensor.

    >>> masks = {name: torch.ones(10, 10, dtype=torch.bool) for name in ("0.attention", "0.ffn")}
    >>> PerType(share={"*.attention": 2.0})(masks, lambda name: torch.empty(0), 0.85)
    {'0.attention': 80, '0.ffn': 90}
    """

    share: Mapping[str, float]
    within: Allocation | None = None

    def __post_init__(self) -> None:
        """Check the weights, and take a copy: a config's mapping would go into checkpoints."""
        if not isinstance(self.share, Mapping):
            raise TypeError(
                f"share={self.share!r}: expected pattern → weight, like {{'*.attention.*': 2.0}}"
            )
        for pattern, weight in self.share.items():
            if not 0.0 < weight < math.inf:
                raise ValueError(
                    f"share[{pattern!r}]={weight}: expected a finite weight above 0; "
                    "to keep tensors dense leave them out of the scope"
                )
        object.__setattr__(self, "share", dict(self.share))

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Counts per tensor, shared out between groups first, then within each."""
        groups = self._groups(masks)
        sizes = [sum(mask.numel() for mask in group.values()) for _, group in groups]
        kept = [sum(count_true(mask) for mask in group.values()) for _, group in groups]
        stay = _staying([weight for weight, _ in groups], sizes, kept, sparsity)
        within = self.within or ERK(power=0.0)
        counts: Counts = {}
        for (_, group), size, left in zip(groups, sizes, stay, strict=True):
            counts |= within(group, score, (size - left) / size)
        return {name: counts[name] for name in masks}

    def _groups(self, masks: Masks) -> list[tuple[float, Masks]]:
        """Weight and masks of each group, the unmatched last."""
        groups: dict[str | None, dict[str, Tensor]] = {pattern: {} for pattern in self.share}
        for name, mask in masks.items():
            pattern = next((p for p in self.share if fnmatchcase(name, p)), None)
            groups.setdefault(pattern, {})[name] = mask
        for pattern, group in groups.items():
            if not group:
                raise ValueError(
                    f"share pattern {pattern!r} matches no tensor that an earlier pattern has not "
                    f"taken; there are for example {', '.join(list(masks)[:3])}"
                )
        return [(self.share[p] if p is not None else 1.0, group) for p, group in groups.items()]


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What scores at most `threshold` goes, as much as that is: no target is aimed at.

    Of the schedule only the steps count at which masks are updated; the sparsity that it names is
    not looked at, and what came out is counted. Made for `SoftMovement`, whose penalty decides how
    many weights fall below; with regrowth those come back that rise above it again.

    Args:
        threshold: τ; of `SoftMovement` in (0, 1), as its scores are.
        least: Share of each tensor's n weights that stays whatever they score: ``⌊least · n⌋ + 1``
            of them, the best.

    Raises:
        ValueError: `least` outside [0, 1), `threshold` not finite.

    Source: Sanh et al. 2020 (arXiv 2005.07683), section 4.3; `least` is that of their code. There
    the threshold itself rises with the schedule, from 0.

    >>> scores = {"a": torch.tensor([0.05, 0.1, 0.5, 0.6]), "b": torch.zeros(4)}
    >>> masks = {name: torch.ones(4, dtype=torch.bool) for name in scores}
    >>> Threshold()(masks, scores.get, 0.75)
    {'a': 2, 'b': 3}
    """

    threshold: float = 0.1
    least: float = 0.005

    def __post_init__(self) -> None:
        """Check both."""
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold={self.threshold}: expected a finite number")
        check_fraction("least", self.least, closed=False)

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Counts per tensor: what is gone, and what of the rest scores too low."""
        return {name: self._count(mask, score(name)) for name, mask in masks.items()}

    def _count(self, kept: Tensor, scores: Tensor) -> int:
        low = count_true(hits(rankable(scores), operator.le, self.threshold, kept))
        most = kept.numel() - (math.floor(self.least * kept.numel()) + 1)
        gone = pruned_in(kept)
        return max(gone, min(gone + low, most))


def _by_density(masks: Masks, densities: Sequence[float], sparsity: float) -> Counts:
    """Counts that leave the tensors densities in these ratios."""
    sizes = [mask.numel() for mask in masks.values()]
    kept = [count_true(mask) for mask in masks.values()]
    stay = _staying(densities, sizes, kept, sparsity)
    return {name: size - left for name, size, left in zip(masks, sizes, stay, strict=True)}


def _staying(
    densities: Sequence[float], sizes: Sequence[int], kept: Sequence[int], sparsity: float
) -> list[int]:
    """How many weights stay, at densities in these ratios but none more than are `kept` now."""
    total = min(sum(sizes) - count_of(sparsity, sum(sizes)), sum(kept))
    weights = [Fraction(density) * size for density, size in zip(densities, sizes, strict=True)]
    return share_out(total, weights, kept)


def _limits(
    masks: Masks, sparsity: float, floor: float, ceiling: float
) -> tuple[Counts, Counts, int]:
    """Least and greatest count of each tensor, and the total, which lies between their sums."""
    if sparsity > ceiling:
        raise ValueError(f"ceiling={ceiling} is below the sparsity asked for, {sparsity}; raise it")
    sizes = {name: mask.numel() for name, mask in masks.items()}
    gone = {name: pruned_in(mask) for name, mask in masks.items()}
    total = max(count_of(sparsity, sum(sizes.values())), sum(gone.values()))
    high = {name: max(gone[name], math.ceil(ceiling * size)) for name, size in sizes.items()}
    # Rounded down: the sum of these is never above the total, but for what is gone already.
    least = {name: math.floor(min(floor, sparsity) * size) for name, size in sizes.items()}
    more = [max(least[name] - gone[name], 0) for name in masks]
    more = share_out(min(sum(more), total - sum(gone.values())), weights=more, limits=more)
    return {name: gone[name] + n for name, n in zip(masks, more, strict=True)}, high, total


def _check_bounds(floor: float, ceiling: float) -> None:
    """Raise ValueError unless 0 ≤ floor ≤ ceiling ≤ 1."""
    check_fraction("ceiling", ceiling, closed=True)
    check_fraction("floor", floor, closed=True)
    if floor > ceiling:
        raise ValueError(
            f"floor={floor} is above ceiling={ceiling}: no count lies between; lower the floor or "
            "raise the ceiling"
        )


def _normalized(score: Score) -> Score:
    """Scores divided by the L2 norm of their tensor's; a tensor of zeros is left as it is."""

    @cache
    def norm(name: str) -> float:
        scores = score(name).detach()
        finite = scores.where(scores.isfinite(), torch.zeros_like(scores))
        largest = float(finite.abs().max())
        # Divided first: squares of small scores, as of second order, would be 0.
        return float(torch.linalg.vector_norm(finite / largest)) * largest if largest else 1.0

    return lambda name: score(name) / norm(name)
