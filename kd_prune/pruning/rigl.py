"""RigL: at every update some kept weights go and as many pruned ones come, where the loss asks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from kd_prune.pruning.mask import count_true, exact, pruned_in


@dataclass(frozen=True, kw_only=True)
class RigL:
    """Drop and grow: an exchange of weights beside the pruning of the schedule.

    At an update at progress p of the ramp the ``round(f · kept)`` lowest scores of each tensor go,
    with ``f = fraction / 2 · (1 + cos(π p))``, and as many weights come of those that are not
    kept, where the gradient's magnitude is largest (one that has just gone may come back as it
    was). Others begin at 0 without momentum, so the count of zeros is above that of pruned weights
    until the next step. The last update exchanges nothing.

    RigL itself is at its final sparsity from the start and exchanges at regular steps:
    ``SparsityCallback(0.9, initial=0.9, shape=linear, end=0.75, plan=steady_plan, regrow=RigL())``.

    Source: Evci et al. 2020 (arXiv 1911.11134), section 3; ``fraction`` is α, the cosine eq. 1.

    Args:
        fraction: Share of the kept weights that is exchanged at first, in (0, 1).

    Raises:
        ValueError: `fraction` is out of range.

    >>> RigL(fraction=0.3).share(0.0), round(RigL(fraction=0.3).share(1.0), 9)
    (0.3, 0.0)
    """

    fraction: float = 0.3

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0.0 < self.fraction < 1.0:
            raise ValueError(f"fraction={self.fraction}: expected a fraction in (0, 1)")

    def share(self, progress: float) -> float:
        """Share of the kept weights that is exchanged at `progress` of the ramp."""
        return self.fraction / 2 * (1 + math.cos(math.pi * progress))

    def exchange(self, mask: Tensor, scores: Tensor, gradient: Tensor, progress: float) -> Tensor:
        """The mask after the exchange, with as many weights kept as before.

        Args:
            mask: True = kept.
            scores: Like `mask`; the lowest go.
            gradient: Like `mask`; those largest in magnitude come, of equal ones the higher index.
            progress: Place on the ramp, in [0, 1].

        >>> import torch
        >>> mask = torch.tensor([True, True, False, False])
        >>> scores, gradient = torch.tensor([1.0, 2.0, 0, 0]), torch.tensor([0.0, 0, 3.0, -4.0])
        >>> RigL(fraction=0.5).exchange(mask, scores, gradient, progress=0.0)
        tensor([False,  True, False,  True])
        """
        kept = count_true(mask)
        moved = min(round(self.share(progress) * kept), pruned_in(mask))
        stay = exact(scores, pruned_in(mask) + moved, mask)
        places = ~stay
        come = exact(gradient.abs(), mask.numel() - moved, places)
        return stay | come
