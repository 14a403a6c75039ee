"""Which weights go: exact selection by score, and how a target is shared between tensors.

Masks are bool tensors, True = kept. Counts are exact, whatever the ties, and masks are nested:
what is pruned already counts first and never comes back. Only the kept weights are ranked.

On the CPU numpy works on the tensors' memory: partition, comparison and counting take it a fifth to
a tenth of torch's time (``benchmarks/mask_update.py``).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Masks = Mapping[str, Tensor]
Score = Callable[[str], Tensor]
"""Name → float32 scores of that tensor, of its shape; larger = keep. Not stored, asked for."""
Counts = dict[str, int]
"""Name → how many of that tensor's weights are pruned after the update, old ones included."""
Allocation = Callable[[Masks, Score, float], Counts]
Select = Callable[[Tensor, int, Tensor], Tensor]


def count_of(sparsity: float, size: int) -> int:
    """How many of `size` weights are pruned at `sparsity`: ``round(sparsity · size)``.

    >>> count_of(0.95, 384 * 384)
    140083
    """
    return round(sparsity * size)


def pruned_in(mask: Tensor) -> int:
    """How many weights the mask prunes.

    >>> pruned_in(torch.tensor([True, False, False]))
    2
    """
    return mask.numel() - count_true(mask)


def count_true(mask: Tensor) -> int:
    """How many entries are True.

    >>> count_true(torch.tensor([True, False, False]))
    1
    """
    return int(np.count_nonzero(mask.numpy()) if on_cpu(mask) else mask.count_nonzero())


def on_cpu(tensor: Tensor) -> bool:
    """Whether numpy can see the tensor's memory."""
    return tensor.device.type == "cpu"


def exact(scores: Tensor, count: int, kept: Tensor) -> Tensor:
    """Prune the smallest scores until `count` are gone; of equal scores the lower index goes first.

    Args:
        scores: Any shape, without NaN.
        count: How many entries are False in the end, 0 … ``scores.numel()``.
        kept: The mask so far, like `scores`; its False entries stay False.

    Returns:
        Bool tensor like `scores` with exactly `count` entries False, or `kept` itself if as many
        are gone already.

    >>> exact(torch.tensor([3.0, 1.0, 1.0, 2.0]), 1, kept=torch.ones(4, dtype=torch.bool))
    tensor([ True, False,  True,  True])
    """
    more = count - pruned_in(kept)
    if more <= 0:
        return kept
    scores = rankable(scores)
    threshold = nth_smallest(kept_scores(scores, kept), more)
    mask = hits(scores, operator.gt, threshold, kept)
    spared = pruned_in(mask) - count
    if spared:
        ties = hits(scores, operator.eq, threshold, kept).nonzero()  # in index order
        mask[tuple(ties[-spared:].T)] = True
    return mask


def rankable(scores: Tensor) -> Tensor:
    """Scores without gradient, of at least 32 bits: numpy has no bfloat16."""
    scores = scores.detach()
    return scores.float() if scores.element_size() < 4 else scores


def hits(
    scores: Tensor, compare: Callable[[Any, float], Any], threshold: float, kept: Tensor
) -> Tensor:
    """Mask of the kept scores for which ``compare(score, threshold)`` holds.

    >>> hits(torch.tensor([3.0, 1.0]), operator.ge, 1.0, torch.tensor([True, False]))
    tensor([ True, False])
    """
    if on_cpu(scores):
        return torch.from_numpy(compare(scores.numpy(), threshold) & kept.numpy())
    found: Tensor = compare(scores, threshold) & kept
    return found


def kept_scores(scores: Tensor, kept: Tensor) -> Tensor:
    """A flat copy of the scores where `kept` is True, in order.

    The pruned ones could instead stay in the ranking as -inf, but selecting among that many equal
    values takes 20 times as long.

    >>> kept_scores(torch.tensor([3.0, 1.0]), torch.tensor([False, True]))
    tensor([1.])
    """
    if not pruned_in(kept):
        return scores.flatten().clone()
    if on_cpu(scores):
        return torch.from_numpy(scores.numpy().compress(kept.numpy().ravel()))
    return scores[kept]


def lowest(values: Tensor, n: int) -> Tensor:
    """The n lowest of flat values, the largest of them last; reorders `values`.

    >>> lowest(torch.tensor([3.0, 1.0, 2.0]), 1)
    tensor([1.])
    """
    if not on_cpu(values):
        return values.sort().values[:n]
    if n:
        values.numpy().partition(n - 1)
    return values[:n]


def nth_smallest(values: Tensor, n: int) -> float:
    """The n-th smallest of flat values, n from 1; reorders `values`.

    >>> nth_smallest(torch.tensor([3.0, 1.0, 2.0]), 2)
    2.0
    """
    return float(lowest(values, n)[-1])


def layerwise(masks: Masks, score: Score, sparsity: float) -> Counts:
    """Every tensor alike: ``round(sparsity · n)`` of each.

    >>> layerwise({"a": torch.ones(2, 5, dtype=torch.bool)}, lambda name: torch.empty(0), 0.5)
    {'a': 5}
    """
    return {name: count_of(sparsity, mask.numel()) for name, mask in masks.items()}


@dataclass(frozen=True, kw_only=True)
class Global:
    """One threshold for all tensors together: ``round(sparsity · N)`` of the N weights in scope.

    Beside the weights it needs memory for one copy of their scores.

    Args:
        ceiling: No tensor of n weights loses more than ``⌈ceiling · n⌉``; what it is spared is
            taken from the others. At 1.0 a raw global ranking may empty a tensor.

    Raises:
        ValueError: `ceiling` outside [0, 1], or (when called) below the sparsity asked for.

    >>> scores = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b": torch.tensor([5.0, 6.0, 7.0, 8.0])}
    >>> masks = {name: torch.ones(4, dtype=torch.bool) for name in scores}
    >>> Global()(masks, scores.get, 0.5)
    {'a': 4, 'b': 0}
    >>> Global(ceiling=0.75)(masks, scores.get, 0.5)
    {'a': 3, 'b': 1}
    """

    ceiling: float = 1.0

    def __post_init__(self) -> None:
        """Check the ceiling."""
        if not 0.0 <= self.ceiling <= 1.0:
            raise ValueError(f"ceiling={self.ceiling}: expected a fraction in [0, 1]")

    def __call__(self, masks: Masks, score: Score, sparsity: float) -> Counts:
        """Counts per tensor that add up to ``round(sparsity · N)`` exactly.

        They add up to more only where more is pruned already. Ties at the threshold are taken
        tensor by tensor, in order.
        """
        if sparsity > self.ceiling:
            raise ValueError(
                f"ceiling={self.ceiling} is below the sparsity asked for, {sparsity}; raise it"
            )
        gone = {name: pruned_in(mask) for name, mask in masks.items()}
        wanted = count_of(sparsity, sum(mask.numel() for mask in masks.values()))
        wanted -= sum(gone.values())
        if wanted <= 0:
            return gone
        room = {
            name: max(0, math.ceil(self.ceiling * mask.numel()) - gone[name])
            for name, mask in masks.items()
        }
        threshold = nth_smallest(candidates(masks, score, room), wanted)

        def found(name: str, compare: Callable[[Any, float], Any]) -> int:
            return min(room[name], count_true(hits(score(name), compare, threshold, masks[name])))

        more = {name: found(name, operator.le) for name in masks}
        surplus = sum(more.values()) - wanted
        for name in reversed(more):
            if surplus:
                spared = min(surplus, more[name] - found(name, operator.lt))
                more[name] -= spared
                surplus -= spared
        return {name: gone[name] + more[name] for name in masks}


def candidates(masks: Masks, score: Score, room: Mapping[str, int]) -> Tensor:
    """The ``room[name]`` lowest kept scores of each tensor, in one flat float32 tensor.

    >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0, 3.0])}
    >>> masks = {name: torch.ones(2, dtype=torch.bool) for name in scores}
    >>> candidates(masks, scores.get, {"a": 2, "b": 1})
    tensor([1., 2., 3.])
    """
    size, any_mask = sum(room.values()), next(iter(masks.values()))
    # Filled piece by piece: a list for torch.cat would hold every score twice. On the CPU numpy
    # allocates, in huge pages: the first touch of torch's small ones takes longer than the ranking.
    if on_cpu(any_mask):
        everything = torch.from_numpy(np.empty(size, np.float32))
    else:
        everything = torch.empty(size, device=any_mask.device)
    start = 0
    for name, mask in masks.items():
        values = kept_scores(score(name), mask)
        if room[name] < values.numel():
            values = lowest(values, room[name])
        everything[start : start + room[name]] = values
        start += room[name]
    return everything
