"""Granularities: which weights are pruned together (single weights: `unstructured`).

A granularity is a `Selection`, ``(scores, count, kept) → mask``, with nested masks. One that cannot
reach every count is a `Granularity`, and one that ties weights of several tensors a
`CrossTensorGranularity`. `pool_scores`, `reachable_counts` and `compute_masks` apply either kind to
all tensors in scope.

Weights are matrices (output, input); convolutions are treated as ``weight.flatten(1)``. Conv1D of
transformers (GPT-2) and transposed convolutions store (input, output, …): a granularity sees them
turned, so rows are outputs everywhere (`OnRows`; the parameters have to come from a `Scope` or
`default_scope`, which know the layers). Biases are never pruned.
"""

from kd_prune.pruning.granularity.base import (
    CrossTensorGranularity,
    Granularity,
    compute_masks,
    pool_scores,
    reachable_counts,
)
from kd_prune.pruning.granularity.heads import AttentionHeads
from kd_prune.pruning.granularity.nm import NM
from kd_prune.pruning.granularity.structured import Block, Heads, Rows
from kd_prune.pruning.selection import unstructured

__all__ = [
    "NM",
    "AttentionHeads",
    "Block",
    "CrossTensorGranularity",
    "Granularity",
    "Heads",
    "Rows",
    "compute_masks",
    "pool_scores",
    "reachable_counts",
    "unstructured",
]
