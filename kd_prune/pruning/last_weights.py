"""LastWeights: no tensor loses all its weights, unless that was asked for."""

from __future__ import annotations

import warnings

from torch import Tensor

from kd_prune.pruning.checks import listed
from kd_prune.pruning.selection import Counts, Masks, Score


class LastWeights:
    """Keeps one weight of every tensor, or one group of a granularity, and warns of it.

    A tensor without weights passes nothing on, and no gradient comes back through it.

    Args:
        allow_empty: Whether tensors may lose all their weights; then nothing is done.

    >>> import torch
    >>> masks = {"a": torch.ones(4, dtype=torch.bool), "b": torch.ones(4, dtype=torch.bool)}
    >>> LastWeights(allow_empty=False).limit({"a": 4, "b": 3}, masks)
    {'a': 3, 'b': 3}
    """

    def __init__(self, *, allow_empty: bool) -> None:
        self.allow_empty = allow_empty
        self._bound: list[str] = []
        self._warned = set[str]()

    def limit(self, counts: Counts, masks: Masks) -> Counts:
        """Lower by one the counts that empty a tensor; one that is empty already stays so."""
        if self.allow_empty:
            return counts
        full = [name for name, count in counts.items() if count == masks[name].numel()]
        self._bound = [name for name in full if masks[name].any()]
        return counts | {name: counts[name] - 1 for name in self._bound}

    def warn(self, sparsity: float) -> None:
        """Warn, once for each tensor, where the last call of `limit` lowered a count."""
        new = [name for name in self._bound if name not in self._warned]
        self._warned.update(new)
        if new:
            warnings.warn(
                f"{listed(new)}: would lose all weights at sparsity {sparsity:.4g}, "
                "so one (or one group) is kept; leave such a tensor out of the scope, or take "
                "allow_empty=True",
                stacklevel=4,
            )


def noting(names: list[str], score: Score) -> Score:
    """Return a function that adds the names it is called with to `names`."""

    def noted(name: str) -> Tensor:
        names.append(name)
        return score(name)

    return noted
