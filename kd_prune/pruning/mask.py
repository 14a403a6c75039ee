"""Which weights go: exact selection by score.

Masks are bool tensors, True = kept. Counts are exact, whatever the ties, and masks are nested:
what is pruned already counts first and never comes back. Only the kept weights are ranked.

On the CPU numpy works on the tensors' memory: comparing, counting and sorting take it a tenth of
torch's time.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
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
Parts = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Pairs (scores, mask of those that count), made anew at each call: all at once may be too much."""


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
    threshold = nth_smallest(lambda: [(scores, kept)], more)
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


def nth_smallest(parts: Parts, n: int) -> float:
    """The n-th smallest kept score of all parts together, n from 1.

    A sample brackets it, and only what lies between the brackets is copied and sorted: about one
    percent. Source: Floyd & Rivest 1975, "Expected time bounds for selection".

    >>> everything = torch.ones(3, dtype=torch.bool)
    >>> nth_smallest(lambda: [(torch.tensor([3.0, 1.0, 2.0]), everything)], 2)
    2.0
    """
    for low, high in (brackets(parts, n), (-math.inf, math.inf)):
        below, between = 0, []
        for scores, kept in parts():
            above = hits(scores, operator.ge, low, kept)
            below += count_true(kept) - count_true(above)
            between.append(pick(scores, hits(scores, operator.le, high, above)))
        values = torch.cat(between)
        if below < n <= below + values.numel():  # else the sample misled
            break
    return float(ordered(values)[n - below - 1])


def brackets(parts: Parts, n: int) -> tuple[float, float]:
    """Two scores that the n-th smallest lies between, almost surely.

    In a sample of m among N, with ``p = n / N``, they rank ``p·m ± (4·√(p·(1 - p)·m) + 1)``: the
    mean, and four standard deviations.
    """
    size, sample = 0, []
    for scores, kept in parts():
        size += count_true(kept)
        # A prime stride: one that divides the width would look at a few columns only.
        sample.append(pick(scores.flatten()[::61], kept.flatten()[::61]))
    values = ordered(torch.cat(sample))
    mean = n / size * len(values)
    margin = 4 * math.sqrt(mean * (1 - n / size)) + 1
    low, high = math.floor(mean - margin), math.ceil(mean + margin)
    return (
        float(values[low]) if low >= 0 else -math.inf,
        float(values[high]) if high < len(values) else math.inf,
    )


def hits(
    scores: Tensor, compare: Callable[[Any, float], Any], threshold: float, kept: Tensor
) -> Tensor:
    """Mask of the kept scores for which ``compare(score, threshold)`` holds.

    >>> hits(torch.tensor([3.0, 1.0]), operator.ge, 1.0, torch.tensor([True, False]))
    tensor([ True, False])
    """
    if on_cpu(scores):
        found: Tensor = torch.from_numpy(compare(scores.numpy(), threshold))
    else:
        found = compare(scores, threshold)
    return found.logical_and_(kept)


def pick(scores: Tensor, mask: Tensor) -> Tensor:
    """The scores where the mask is True, flat.

    >>> pick(torch.tensor([3.0, 1.0]), torch.tensor([False, True]))
    tensor([1.])
    """
    if on_cpu(scores):
        return torch.from_numpy(scores.numpy().compress(mask.numpy().ravel()))
    return scores[mask]


def ordered(values: Tensor) -> Tensor:
    """Flat values, rising.

    >>> ordered(torch.tensor([3.0, 1.0, 2.0]))
    tensor([1., 2., 3.])
    """
    return torch.from_numpy(np.sort(values.numpy())) if on_cpu(values) else values.sort().values
