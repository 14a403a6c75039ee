"""Which weights go: exact selection by score.

Masks are bool tensors, True = kept. Counts are exact, whatever the ties, and masks are nested:
what is pruned already counts first and never comes back. Only the kept weights are ranked.

On the CPU numpy works on the tensors' memory: comparing, counting and sorting take it a tenth of
torch's time. On a GPU `exact` looks at nothing on its way: every look waits for it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        Bool tensor like `scores` with exactly `count` entries False, or a mask equal to `kept` if
        as many are gone already.

    >>> exact(torch.tensor([3.0, 1.0, 1.0, 2.0]), 1, kept=torch.ones(4, dtype=torch.bool))
    tensor([ True, False,  True,  True])
    """
    scores, kept = rankable(scores).contiguous(), kept.contiguous()
    if not on_cpu(scores):
        return _by_sorting(scores, count, kept)
    here = count_true(kept)
    more = count - (kept.numel() - here)
    if more <= 0:
        return kept
    # All above the brackets stay. Only what lies between is looked at one by one, and put into the
    # mask where it stays: no further pass over the scores.
    for low, high in brackets(lambda: [(scores, kept)], more, here):
        mask = hits(scores, operator.gt, high, kept)
        reached, falling = kept, 0
        if low > -math.inf:
            reached = hits(scores, operator.ge, low, kept)
            falling = here - count_true(reached)
        between = places(reached ^ mask)
        staying = len(between) - (more - falling)
        if 0 <= staying <= len(between):  # else the sample misled
            break
    if staying:
        values = at(scores, between)
        threshold = nth(values, len(between) - staying)
        stay = hits(values, operator.gt, threshold)
        spared = staying - count_true(stay)
        if spared:
            ties = places(hits(values, operator.eq, threshold))  # in index order
            stay[ties[-spared:]] = True
        mask.view(-1).numpy()[at(between, places(stay)).numpy()] = True
    return mask


def _by_sorting(scores: Tensor, count: int, kept: Tensor) -> Tensor:
    """The same by one stable sort, in which what is gone comes first (-inf kept: as the lowest)."""
    lowest = torch.finfo(scores.dtype).min
    order = scores.clamp(min=lowest).masked_fill_(~kept, -math.inf).flatten().argsort(stable=True)
    mask = kept.flatten().clone()
    mask[order[:count]] = False
    return mask.view_as(kept)


def rankable(scores: Tensor) -> Tensor:
    """Scores without gradient, floats of at least 32 bits: numpy has no bfloat16."""
    scores = scores.detach()
    if not scores.is_floating_point():
        return scores.double()
    return scores.float() if scores.element_size() < 4 else scores


def nth_smallest(parts: Parts, n: int) -> float:
    """The n-th smallest kept score of all parts together, n from 1.

    A sample brackets it, and only what lies between the brackets is copied and looked at: about
    one percent. Source: Floyd & Rivest 1975, "Expected time bounds for selection".

    >>> everything = torch.ones(3, dtype=torch.bool)
    >>> nth_smallest(lambda: [(torch.tensor([3.0, 1.0, 2.0]), everything)], 2)
    2.0
    """
    size = sum(count_true(kept) for _, kept in parts())
    for low, high in brackets(parts, n, size):
        below, found = 0, []
        for scores, kept in parts():
            above = hits(scores, operator.ge, low, kept)
            below += count_true(kept) - count_true(above)
            found.append(at(scores, places(hits(scores, operator.le, high, above))))
        values = torch.cat(found)
        if below < n <= below + len(values):  # else the sample misled
            break
    return nth(values, n - below)


def brackets(parts: Parts, n: int, size: int) -> Iterator[tuple[float, float]]:
    """Pairs of scores that the n-th smallest of `size` lies between: likely, almost surely, surely.

    In a sample of m among N, with ``p = n / N``, the first rank ``p·m ± (d + 1)``, where d is two
    and a half standard deviations, ``√(p·(1 - p)·m)``. The second take four times d, the last are
    infinite. (To be misled once in 80 times costs less than what wider brackets hold.)
    """
    # A prime stride: one that divides the width would look at a few columns only.
    values = torch.cat([at(scores, places(kept.flatten()[::61]) * 61) for scores, kept in parts()])
    mean = n / size * len(values)
    for deviations in (2.5, 10.0):
        margin = deviations * math.sqrt(mean * (1 - n / size)) + 1
        # Places from 1; 0 and one too many stand for what is below and above all.
        low, high = math.floor(mean - margin) + 1, math.ceil(mean + margin) + 1
        yield nth(values, max(low, 0)), nth(values, min(high, len(values) + 1))
    yield -math.inf, math.inf


def hits(
    scores: Tensor,
    compare: Callable[[Any, float], Any],
    threshold: float,
    kept: Tensor | None = None,
) -> Tensor:
    """Mask of the scores (of those that are kept) for which ``compare(score, threshold)`` holds.

    >>> hits(torch.tensor([3.0, 1.0]), operator.ge, 1.0, torch.tensor([True, False]))
    tensor([ True, False])
    """
    if on_cpu(scores):
        found: Tensor = torch.from_numpy(compare(scores.numpy(), threshold))
    else:
        found = compare(scores, threshold)
    return found if kept is None else found.logical_and_(kept)


def places(mask: Tensor) -> Tensor:
    """Flat indices of what is True, rising.

    >>> places(torch.tensor([[False, True], [True, False]]))
    tensor([1, 2])
    """
    if not on_cpu(mask):
        return mask.flatten().nonzero().flatten()
    # Eight flags are looked at as one integer, and one by one only where that is not 0: twice as
    # fast where 2 % are True.
    flags = mask.numpy().ravel()
    whole = flags.size // 8 * 8
    eights = flags[:whole].view(np.uint64)
    some = np.flatnonzero(eights != 0)
    within = np.flatnonzero(eights.take(some).view(np.bool_))
    found = some.take(within >> 3) * 8 + (within & 7)
    rest = np.flatnonzero(flags[whole:]) + whole
    return torch.from_numpy(np.concatenate((found, rest)))


def holds_nan(scores: Tensor) -> bool:
    """Whether any is NaN.

    >>> holds_nan(torch.tensor([1.0, math.nan])), holds_nan(torch.tensor([math.inf, -math.inf]))
    (True, False)
    """
    # NaN makes the sum NaN, as inf - inf does. It is the cheapest look at values just computed.
    return bool(scores.sum().isnan()) and bool(scores.isnan().any())


def at(scores: Tensor, indices: Tensor) -> Tensor:
    """The scores at these flat indices.

    >>> at(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), torch.tensor([1, 2]))
    tensor([1., 2.])
    """
    if on_cpu(scores):
        return torch.from_numpy(scores.numpy().take(indices.numpy()))
    return scores.flatten()[indices]


def nth(values: Tensor, n: int) -> float:
    """The n-th smallest of flat values, n from 1; 0: less than any, one too many: more than any.

    >>> nth(torch.tensor([3.0, 1.0, 2.0]), 2)
    2.0
    """
    if not 1 <= n <= len(values):
        return -math.inf if n < 1 else math.inf
    if on_cpu(values):  # a third of what sorting takes
        return float(np.partition(values.numpy(), n - 1)[n - 1])
    return float(values.sort().values[n - 1])
