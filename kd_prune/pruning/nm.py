"""n:m sparsity: of every m weights in a row n stay, as hardware wants them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from kd_prune.pruning.granularity import (
    Shape,
    check_positive,
    matrix,
)
from kd_prune.pruning.mask import (
    count_true,
    exact,
    rankable,
)


@dataclass(frozen=True, kw_only=True)
class NM:
    """n:m: in the end `keep` of every `of` consecutive inputs of a row are left.

    At risk are the weights that are not among the `keep` largest kept scores of their group; of
    these the smallest go. So the groups fill up along a ramp, and at sparsity ``1 − keep / of``
    each has `keep` left. Weights that were pruned before count in their group; what a group lacks
    beyond the pattern comes on top of the count, so that the pattern holds at the end all the same.

    torch's kernels (`torch.sparse.to_sparse_semi_structured`) take 2:4 along the last dimension, in
    float16, bfloat16 and int8 (in float32 they want 1:2), of contiguous matrices whose sides are
    multiples of 32 and 64 or so. They do not check the pattern: what does not fit it is lost.
    The Pruner refuses allocations that may take more than ``1 − keep / of`` from one tensor: give
    `Global` and `Bounded` that `ceiling`.

    Args:
        keep: Weights left in a group, 1 … ``of − 1``.
        of: Size of a group; divides the inputs of a row.

    Raises:
        ValueError: `keep` or `of` out of range; when called, a width that `of` does not divide.

    Source: Mishra et al. 2021, arXiv 2104.08378, section 4 (one shot; here on a ramp).

    >>> scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 8.0, 7.0, 6.0, 5.0]])
    >>> everything = torch.ones(1, 8, dtype=torch.bool)
    >>> NM()(scores, 3, everything).int()
    tensor([[1, 1, 0, 0, 1, 1, 1, 0]], dtype=torch.int32)
    >>> NM()(scores, 4, everything).int()
    tensor([[1, 1, 0, 0, 1, 1, 0, 0]], dtype=torch.int32)
    """

    keep: int = 2
    of: int = 4

    def __post_init__(self) -> None:
        """Check both numbers."""
        check_positive("keep", self.keep)
        check_positive("of", self.of)
        if self.keep >= self.of:
            raise ValueError(
                f"keep={self.keep}: expected less than of={self.of}, or nothing would be pruned"
            )

    def __call__(self, scores: Tensor, count: int, kept: Tensor) -> Tensor:
        """Prune until `count` entries are False, each group at most ``of − keep`` of them."""
        count = self.reachable(count, scores.shape)
        scores, kept = rankable(scores), kept.contiguous()
        groups = kept.view(-1, self.of)
        safe = self._best(scores.reshape(-1, self.of).T.contiguous(), groups.T.contiguous())
        safe = safe.T.reshape(kept.shape)
        lacking = (self.keep - groups.sum(1)).clamp_(min=0).sum()
        # To `exact` the safe ones are gone, like those pruned: neither is ranked.
        return exact(scores, count + int(lacking) + count_true(safe), kept & ~safe) | safe

    def reachable(self, count: int, shape: Shape) -> int:
        """`count`, or as many as the pattern allows.

        >>> NM().reachable(99, (10, 20)), NM().reachable(101, (10, 20))
        (99, 100)
        """
        _, width = matrix(shape)
        if width % self.of:
            raise ValueError(
                f"of={self.of} does not divide the {width} inputs of shape {tuple(shape)}; choose "
                "an `of` that does, or exclude the tensor from the scope"
            )
        return min(count, math.prod(shape) // self.of * (self.of - self.keep))

    def level(self, scores: Tensor) -> Tensor:
        """The scores as they are: weights go one by one."""
        return scores

    def _best(self, scores: Tensor, kept: Tensor) -> Tensor:
        """The `keep` best kept of each group, all (of, groups); of equals those of higher index.

        Counts by how many each is beaten: for small groups far faster than sorting them.
        """
        beaten = torch.zeros(scores.shape, dtype=torch.int16, device=scores.device)
        for low, high in combinations(range(self.of), 2):
            wins = scores[high] >= scores[low]
            beaten[low] += wins & kept[high]
            beaten[high] += ~wins & kept[low]
        return (beaten < self.keep) & kept
