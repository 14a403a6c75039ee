"""Select the weights of one tensor to prune, exactly as many as asked for, by score.

Masks are bool tensors, True = kept. Counts are exact whatever the ties. Masks are nested: weights
pruned already count first and stay pruned, and only kept weights are ranked.

On the CPU, numpy works on the tensors' memory: comparing, counting and sorting take a tenth of
torch's time. On a GPU `unstructured` reads no value back to the host, because every such read waits
for the device.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_prune.pruning.sharding import count_nonzero, is_sharded

Masks = Mapping[str, Tensor]
Score = Callable[[str], Tensor]
"""Name → float32 scores of the tensor's shape; larger = keep. Computed at each call, not stored."""
Counts = dict[str, int]
"""Name → number of the tensor's weights pruned after the update, earlier ones included."""
Selection = Callable[[Tensor, int, Tensor], Tensor]
"""Scores, count, mask so far → new mask."""
Parts = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Pairs of scores and kept mask, recomputed at each call: all pairs at once may not fit memory."""


def num_pruned(sparsity: float, size: int) -> int:
    """Return how many of `size` weights are pruned at `sparsity`: ``round(sparsity · size)``.

    >>> num_pruned(0.95, 384 * 384)
    140083
    """
    return round(sparsity * size)


def count_pruned(mask: Tensor) -> int:
    """Count the weights that the mask prunes.

    >>> count_pruned(torch.tensor([True, False, False]))
    2
    """
    return mask.numel() - count_true(mask)


def count_true(mask: Tensor) -> int:
    """Count the entries that are True, of a sharded mask in all processes.

    >>> count_true(torch.tensor([True, False, False]))
    1
    """
    if is_sharded(mask):
        return count_nonzero([mask])[0]
    return int(np.count_nonzero(mask.numpy()) if on_cpu(mask) else mask.count_nonzero())


def on_cpu(tensor: Tensor) -> bool:
    """Return whether numpy can access the tensor's memory."""
    return tensor.device.type == "cpu"


def unstructured(scores: Tensor, count: int, kept: Tensor) -> Tensor:
    """Prune the smallest scores until `count` weights are pruned; on a tie the lower index first.

    Args:
        scores: Any shape, without NaN.
        count: Number of False entries in the result, 0 … ``scores.numel()``.
        kept: The mask so far, like `scores`; its False entries stay False.

    Returns:
        Bool tensor like `scores` with exactly `count` entries False, or a mask equal to `kept` if
        as many are pruned already.

    >>> unstructured(torch.tensor([3.0, 1.0, 1.0, 2.0]), 1, kept=torch.ones(4, dtype=torch.bool))
    tensor([ True, False,  True,  True])
    """
    scores, kept = rankable(scores).contiguous(), kept.contiguous()
    if not on_cpu(scores):
        return _unstructured_by_sorting(scores, count, kept)
    num_kept = count_true(kept)
    to_prune = count - (kept.numel() - num_kept)
    if to_prune <= 0:
        return kept
    # Scores above the bracket are kept and those below are pruned without being ranked. Only the
    # scores inside are ranked and written into the mask, so there is no further pass over all.
    for low, high in brackets(lambda: [(scores, kept)], to_prune, num_kept):
        mask = compare(scores, operator.gt, high, kept)
        at_least_low, num_below = kept, 0
        if low > -math.inf:
            at_least_low = compare(scores, operator.ge, low, kept)
            num_below = num_kept - count_true(at_least_low)
        inside = flat_nonzero(at_least_low ^ mask)
        num_staying = len(inside) - (to_prune - num_below)
        if 0 <= num_staying <= len(inside):  # else the threshold lies outside the bracket
            break
    if num_staying:
        values = take(scores, inside)
        threshold = kth_value(values, len(inside) - num_staying)
        stay = compare(values, operator.gt, threshold)
        num_tied = num_staying - count_true(stay)
        if num_tied:
            ties = flat_nonzero(compare(values, operator.eq, threshold))  # in index order
            stay[ties[-num_tied:]] = True
        mask.view(-1).numpy()[take(inside, flat_nonzero(stay)).numpy()] = True
    return mask


def _unstructured_by_sorting(scores: Tensor, count: int, kept: Tensor) -> Tensor:
    """Select by one stable argsort, without a read of values by the host.

    Pruned weights sort first as -inf; a kept -inf is raised to the lowest finite value.
    """
    lowest = torch.finfo(scores.dtype).min
    order = scores.clamp(min=lowest).masked_fill_(~kept, -math.inf).flatten().argsort(stable=True)
    mask = kept.flatten().clone()
    mask[order[:count]] = False
    return mask.view_as(kept)


def rankable(scores: Tensor) -> Tensor:
    """Detach scores and convert them to floats of at least 32 bits: numpy has no bfloat16."""
    scores = scores.detach()
    if not scores.is_floating_point():
        return scores.double()
    return scores.float() if scores.element_size() < 4 else scores


def kth_smallest(parts: Parts, k: int) -> float:
    """Return the k-th smallest kept score of all parts together, k from 1.

    A sample brackets the score, and only the scores inside the bracket, about one percent, are
    copied and ranked. Source: Floyd & Rivest 1975, "Expected time bounds for selection".

    >>> everything = torch.ones(3, dtype=torch.bool)
    >>> kth_smallest(lambda: [(torch.tensor([3.0, 1.0, 2.0]), everything)], 2)
    2.0
    """
    size = sum(count_true(kept) for _, kept in parts())
    for low, high in brackets(parts, k, size):
        num_below, inside = 0, []
        for scores, kept in parts():
            at_least_low = compare(scores, operator.ge, low, kept)
            num_below += count_true(kept) - count_true(at_least_low)
            inside.append(
                take(scores, flat_nonzero(compare(scores, operator.le, high, at_least_low)))
            )
        values = torch.cat(inside)
        if num_below < k <= num_below + len(values):  # else the score lies outside the bracket
            break
    return kth_value(values, k - num_below)


def brackets(parts: Parts, k: int, size: int) -> Iterator[tuple[float, float]]:
    """Yield brackets of the k-th smallest of `size` scores: a narrow, a wide, an infinite one.

    In a sample of m of N scores, with ``p = k / N``, the narrow bracket has the ranks ``p·m ± (d +
    1)`` with d = 2.5 standard deviations ``√(p·(1 - p)·m)``; the wide one has four times that d.
    The narrow bracket misses once in 80 times, which costs less than ranking the scores inside a
    wider one every time.
    """
    # The stride is prime: one that divides the width would sample a few columns only.
    values = torch.cat(
        [take(scores, flat_nonzero(kept.flatten()[::61]) * 61) for scores, kept in parts()]
    )
    mean = k / size * len(values)
    for deviations in (2.5, 10.0):
        margin = deviations * math.sqrt(mean * (1 - k / size)) + 1
        # Ranks count from 1; 0 and len + 1 stand for -inf and inf.
        low, high = math.floor(mean - margin) + 1, math.ceil(mean + margin) + 1
        yield kth_value(values, max(low, 0)), kth_value(values, min(high, len(values) + 1))
    yield -math.inf, math.inf


def compare(
    scores: Tensor,
    comparison: Callable[[Any, float], Any],
    threshold: float,
    kept: Tensor | None = None,
) -> Tensor:
    """Return the mask of the (kept) scores for which ``comparison(score, threshold)`` is true.

    >>> compare(torch.tensor([3.0, 1.0]), operator.ge, 1.0, torch.tensor([True, False]))
    tensor([ True, False])
    """
    if on_cpu(scores):
        result: Tensor = torch.from_numpy(comparison(scores.numpy(), threshold))
    else:
        result = comparison(scores, threshold)
    return result if kept is None else result.logical_and_(kept)


def flat_nonzero(mask: Tensor) -> Tensor:
    """Return the flat indices of the True entries, ascending.

    >>> flat_nonzero(torch.tensor([[False, True], [True, False]]))
    tensor([1, 2])
    """
    if not on_cpu(mask):
        return mask.flatten().nonzero().flatten()
    # Eight flags are read as one integer, and one by one only where it is not 0: twice as
    # fast where 2 % are True.
    flags = mask.numpy().ravel()
    full = flags.size // 8 * 8
    groups = flags[:full].view(np.uint64)
    nonzero_groups = np.flatnonzero(groups != 0)
    within = np.flatnonzero(groups.take(nonzero_groups).view(np.bool_))
    indices = nonzero_groups.take(within >> 3) * 8 + (within & 7)
    tail = np.flatnonzero(flags[full:]) + full
    return torch.from_numpy(np.concatenate((indices, tail)))


def contains_nan(scores: Tensor) -> bool:
    """Return whether any score is NaN.

    >>> contains_nan(torch.tensor([1.0, math.nan]))
    True
    >>> contains_nan(torch.tensor([math.inf, -math.inf]))
    False
    """
    # NaN makes the sum NaN (as inf - inf does); the sum is the cheapest test of cached values.
    return bool(scores.sum().isnan()) and bool(scores.isnan().any())


def take(scores: Tensor, indices: Tensor) -> Tensor:
    """Return the scores at flat indices.

    >>> take(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), torch.tensor([1, 2]))
    tensor([1., 2.])
    """
    if on_cpu(scores):
        return torch.from_numpy(scores.numpy().take(indices.numpy()))
    return scores.flatten()[indices]


def kth_value(values: Tensor, k: int) -> float:
    """Return the k-th smallest of flat values, k from 1; -inf for k = 0, inf for k = len + 1.

    >>> kth_value(torch.tensor([3.0, 1.0, 2.0]), 2)
    2.0
    """
    if not 1 <= k <= len(values):
        return -math.inf if k < 1 else math.inf
    if on_cpu(values):  # a third of the time of a sort
        return float(np.partition(values.numpy(), k - 1)[k - 1])
    return float(values.sort().values[k - 1])
