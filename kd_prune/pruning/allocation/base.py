"""The interface of allocations, and uniform allocation."""

from __future__ import annotations

from collections.abc import Callable

from kd_prune.pruning.selection import Counts, Masks, Score, num_pruned

Allocation = Callable[[Masks, Score, float], Counts]
"""Masks, scores, sparsity → number of weights to prune in each tensor."""


def uniform(masks: Masks, score: Score, sparsity: float) -> Counts:
    """Prune every tensor to the same sparsity: ``round(sparsity · n)`` weights of each.

    >>> import torch
    >>> uniform({"a": torch.ones(2, 5, dtype=torch.bool)}, lambda name: torch.empty(0), 0.5)
    {'a': 5}
    """
    return {name: num_pruned(sparsity, mask.numel()) for name, mask in masks.items()}
