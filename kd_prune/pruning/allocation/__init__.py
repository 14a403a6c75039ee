"""Allocations: how a target sparsity is distributed over the tensors in scope.

An `Allocation` is a function ``(masks, score, sparsity) → counts``. With n weights in a tensor and
N in all, the allocations here prune ``round(sparsity · N)`` weights exactly, or the number already
pruned if that is larger; `uniform` rounds per tensor, and `Threshold` has no target. No count is
below the number of weights that its tensor has pruned already.
"""

from kd_prune.pruning.allocation.base import Allocation, uniform
from kd_prune.pruning.allocation.bounds import Bounded
from kd_prune.pruning.allocation.density import ERK, GroupAllocation
from kd_prune.pruning.allocation.mean_score import MeanScore
from kd_prune.pruning.allocation.ranking import Global, Threshold

__all__ = [
    "ERK",
    "Allocation",
    "Bounded",
    "Global",
    "GroupAllocation",
    "MeanScore",
    "Threshold",
    "uniform",
]
