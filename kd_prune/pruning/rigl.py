"""RigL: drop kept weights of low score and grow pruned weights of large gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.pruning.selection import count_pruned, count_true, unstructured


@dataclass(frozen=True, kw_only=True)
class RigL:
    """Exchange kept for pruned weights at every mask update, at constant count.

    At an update at ramp progress p, each tensor drops its ``round(f · kept)`` lowest scores, with
    ``f = fraction / 2 · (1 + cos(π p))``, and grows as many of the weights that are then pruned,
    those of largest gradient magnitude. A weight that was just dropped may be grown again and keeps
    its value; other grown weights start at 0 with cleared optimizer state, so until the next
    step there are more zeros than pruned weights. The last update exchanges nothing.

    The published method is at its final sparsity from the start and exchanges at regular steps:
    ``SparsityCallback(0.9, initial=0.9, ramp=linear, end=0.75, update_schedule=periodic_updates,
    regrow=RigL())``.

    Source: Evci et al. 2020 (arXiv 1911.11134), section 3; ``fraction`` is α, the cosine eq. 1.

    Args:
        fraction: Share of the kept weights exchanged at the first update, in (0, 1).

    Raises:
        ConfigError: `fraction` is out of range.

    >>> RigL(fraction=0.3).share(0.0), round(RigL(fraction=0.3).share(1.0), 9)
    (0.3, 0.0)
    """

    fraction: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction < 1.0:
            raise ConfigError("fraction", self.fraction, "expected a fraction in (0, 1)")

    def share(self, progress: float) -> float:
        """Return the share of kept weights exchanged at `progress` of the ramp."""
        return self.fraction / 2 * (1 + math.cos(math.pi * progress))

    def drop_and_grow(
        self, mask: Tensor, scores: Tensor, gradient: Tensor, progress: float
    ) -> Tensor:
        """Return the mask after the exchange, with as many weights kept as before.

        Args:
            mask: True = kept.
            scores: Like `mask`; the lowest scores are dropped.
            gradient: Like `mask`; the largest magnitudes are grown, on a tie the higher index.
            progress: Progress of the ramp, in [0, 1].

        >>> import torch
        >>> mask = torch.tensor([True, True, False, False])
        >>> scores, gradient = torch.tensor([1.0, 2.0, 0, 0]), torch.tensor([0.0, 0, 3.0, -4.0])
        >>> RigL(fraction=0.5).drop_and_grow(mask, scores, gradient, progress=0.0)
        tensor([False,  True, False,  True])
        """
        kept = count_true(mask)
        exchanged = min(round(self.share(progress) * kept), count_pruned(mask))
        remaining = unstructured(scores, count_pruned(mask) + exchanged, mask)
        grown = unstructured(gradient.abs(), mask.numel() - exchanged, ~remaining)
        return remaining | grown
