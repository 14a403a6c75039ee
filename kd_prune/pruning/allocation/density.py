"""Allocations by given ratios of densities: ERK and groups of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction

from torch import Tensor

from kd_prune.errors import ConfigError, ConfigTypeError
from kd_prune.pruning.allocation.apportion import apportion
from kd_prune.pruning.allocation.base import Allocation
from kd_prune.pruning.checks import check
from kd_prune.pruning.selection import Counts, Masks, Score, count_true, num_pruned


@dataclass(frozen=True, kw_only=True)
class ERK:
    """Erdős–Rényi kernel: small and narrow tensors stay denser than large ones.

    The density of a tensor of dimensions ``d₁ … d_k`` is ``min(1, ε · ((d₁ + … + d_k) / (d₁ · … ·
    d_k))^power)``, with the ε that makes the total exact: tensors that reach density 1 stay dense,
    and the others are pruned more. For matrices with `power` 1 and a density below 1, the number
    of kept weights is proportional to rows plus columns.

    Args:
        power: How much densities differ; 0 gives all tensors the same density.

    Raises:
        ConfigError: `power` negative or not finite.

    Source: Evci et al. 2020, arXiv 1911.11134, section 3 (1); `power` is ``erk_power_scale`` of
    their code.

    >>> import torch
    >>> masks = {"a": torch.ones(4, 4, dtype=torch.bool), "b": torch.ones(8, 8, dtype=torch.bool)}
    >>> ERK()(masks, lambda name: torch.empty(0), 0.7)
    {'a': 8, 'b': 48}
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        valid = 0.0 <= self.power < math.inf
        check("power", self.power, valid, "a finite number ≥ 0; 1 as in the paper, 0 for uniform")

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Return counts that add up to the exact total; scores are not used."""
        sizes = [mask.numel() for mask in masks.values()]
        kept = [count_true(mask) for mask in masks.values()]
        new_kept = kept_counts(list(map(self._density, masks.values())), sizes, kept, sparsity)
        return {name: size - n for name, size, n in zip(masks, sizes, new_kept, strict=True)}

    def _density(self, mask: Tensor) -> float:
        """Return the tensor's density up to the common factor ε."""
        ratio: float = (sum(mask.shape) / mask.numel()) ** self.power
        return ratio


@dataclass(frozen=True, kw_only=True)
class GroupAllocation:
    """Densities of groups of tensors in given ratios.

    The density of a group is ``min(1, ε · ratio)``, with the ε that makes the total exact, at every
    sparsity of a ramp. With ratios 2 for attention and 1 for the others, attention has twice the
    density of the feed-forward matrices.

    Args:
        ratios: Shell glob over tensor names (``*`` crosses dots) → ratio, above 0. The first
            matching pattern counts; tensors that no pattern matches form a group of ratio 1.
        inner: Allocation within a group; None: all tensors of a group have the same density. The
            total is exact if `inner` is exact.

    Raises:
        ConfigTypeError: `ratios` is no mapping.
        ConfigError: A ratio is not above 0 and finite, or (when called) a pattern has no tensor.

    >>> import torch
    >>> masks = {name: torch.ones(10, 10, dtype=torch.bool) for name in ("0.attention", "0.ffn")}
    >>> GroupAllocation(ratios={"*.attention": 2.0})(masks, lambda name: torch.empty(0), 0.85)
    {'0.attention': 80, '0.ffn': 90}
    """

    ratios: Mapping[str, float]
    inner: Allocation | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ratios, Mapping):
            raise ConfigTypeError(
                "ratios", self.ratios, "expected pattern → ratio", "like {'*.attention.*': 2.0}"
            )
        for pattern, ratio in self.ratios.items():
            if not 0.0 < ratio < math.inf:
                raise ConfigError(
                    f"ratios[{pattern}]",
                    ratio,
                    "expected a finite number above 0",
                    "to keep tensors dense leave them out of the scope",
                )
        # A copy in plain types: Hydra's mapping would end up in checkpoints.
        object.__setattr__(self, "ratios", dict(self.ratios))

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Return counts per tensor, distributed over groups first and then within each."""
        groups = self._groups(masks)
        sizes = [sum(mask.numel() for mask in group.values()) for _, group in groups]
        kept = [sum(count_true(mask) for mask in group.values()) for _, group in groups]
        new_kept = kept_counts([ratio for ratio, _ in groups], sizes, kept, sparsity)
        inner = self.inner or ERK(power=0.0)
        counts: Counts = {}
        for (_, group), size, n in zip(groups, sizes, new_kept, strict=True):
            counts |= inner(group, score, (size - n) / size)
        return {name: counts[name] for name in masks}

    def _groups(self, masks: Masks) -> list[tuple[float, Masks]]:
        """Return ratio and masks of each group, the unmatched tensors last."""
        groups: dict[str | None, dict[str, Tensor]] = {pattern: {} for pattern in self.ratios}
        for name, mask in masks.items():
            tensor = name.partition("[")[0]  # experts count as their tensor
            pattern = next((p for p in self.ratios if fnmatchcase(tensor, p)), None)
            groups.setdefault(pattern, {})[name] = mask
        for pattern, group in groups.items():
            if not group:
                raise ConfigError(
                    "allocation.ratios",
                    pattern,
                    "the pattern matches no tensor that earlier patterns leave over",
                    f"there are for example {', '.join(list(masks)[:3])}",
                )
        return [(self.ratios[p] if p is not None else 1.0, group) for p, group in groups.items()]


def kept_counts(
    densities: Sequence[float], sizes: Sequence[int], kept: Sequence[int], sparsity: float
) -> list[int]:
    """Return how many weights to keep, with densities in these ratios and at most `kept` each."""
    total = min(sum(sizes) - num_pruned(sparsity, sum(sizes)), sum(kept))
    weights = [Fraction(density) * size for density, size in zip(densities, sizes, strict=True)]
    return apportion(total, weights, kept)
