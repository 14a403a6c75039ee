"""n:m sparsity: n of every m consecutive weights are kept, as sparse hardware requires."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.pruning.checks import check_positive
from kd_prune.pruning.granularity.base import Shape, matrix_shape
from kd_prune.pruning.selection import count_true, rankable, unstructured


@dataclass(frozen=True, kw_only=True)
class NM:
    """Keep `n` of every `m` consecutive inputs of a row.

    Only weights outside the `n` highest kept scores of their group are ranked, and of these the
    lowest scores are pruned. So the pattern forms gradually along a ramp, and at sparsity ``1 − n /
    m`` each group has `n` weights left. Weights pruned earlier count in their group; a group with
    fewer than `n` weights adds the difference to the count, so that the pattern still holds in all
    groups at the end.

    torch's kernels (`torch.sparse.to_sparse_semi_structured`) take 2:4 along the last dimension in
    float16, bfloat16 and int8 (1:2 in float32), for contiguous matrices with sides that are
    multiples of about 32 and 64. They do not check the pattern, and drop weights that violate it.
    The Pruner refuses allocations that may take more than ``1 − n / m`` from one tensor: give
    `Global` and `Bounded` that `ceiling`.

    Args:
        n: Weights kept in a group, 1 … ``m − 1``.
        m: Size of a group; divides the number of inputs of a row.

    Raises:
        ConfigError: `n` or `m` out of range; when called, a width that `m` does not divide.

    Source: Mishra et al. 2021, arXiv 2104.08378, section 4 (one shot; here on a ramp).

    >>> scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 8.0, 7.0, 6.0, 5.0]])
    >>> everything = torch.ones(1, 8, dtype=torch.bool)
    >>> NM()(scores, 3, everything).int()
    tensor([[1, 1, 0, 0, 1, 1, 1, 0]], dtype=torch.int32)
    >>> NM()(scores, 4, everything).int()
    tensor([[1, 1, 0, 0, 1, 1, 0, 0]], dtype=torch.int32)
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        check_positive("n", self.n)
        check_positive("m", self.m)
        if self.n >= self.m:
            expected = f"expected less than m={self.m}, or nothing would be pruned"
            raise ConfigError("n", self.n, expected)

    def __call__(self, scores: Tensor, count: int, kept: Tensor) -> Tensor:
        """Prune until `count` entries are False, each group at most ``m − n`` of them."""
        count = self.reachable(count, scores.shape)
        scores, kept = rankable(scores), kept.contiguous()
        groups = kept.view(-1, self.m)
        best = self._best(scores.reshape(-1, self.m).T.contiguous(), groups.T.contiguous())
        best = best.T.reshape(kept.shape)
        missing = (self.n - groups.sum(1)).clamp_(min=0).sum()
        # The best are passed to `unstructured` as pruned, so that they are not ranked.
        return unstructured(scores, count + int(missing) + count_true(best), kept & ~best) | best

    def reachable(self, count: int, shape: Shape) -> int:
        """Return `count`, or the highest count that the pattern allows.

        >>> NM().reachable(99, (10, 20)), NM().reachable(101, (10, 20))
        (99, 100)
        """
        _, width = matrix_shape(shape)
        if width % self.m:
            raise ConfigError(
                "granularity.m",
                self.m,
                f"does not divide the {width} inputs of shape {tuple(shape)}",
                "choose an `m` that does, or exclude the tensor from the scope",
            )
        return min(count, math.prod(shape) // self.m * (self.m - self.n))

    def broadcast_scores(self, scores: Tensor) -> Tensor:
        """Return the scores unchanged: weights are pruned one by one."""
        return scores

    def _best(self, scores: Tensor, kept: Tensor) -> Tensor:
        """Mask the `n` best kept scores of each group, (m, groups); on a tie the higher index.

        Counts for each score how many others are better, which is far faster than sorting small
        groups.
        """
        num_better = torch.zeros(scores.shape, dtype=torch.int16, device=scores.device)
        for low, high in combinations(range(self.m), 2):
            wins = scores[high] >= scores[low]
            num_better[low] += wins & kept[high]
            num_better[high] += ~wins & kept[low]
        return (num_better < self.n) & kept
