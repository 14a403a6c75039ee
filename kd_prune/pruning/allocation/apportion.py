"""Exact distribution of an integer in given proportions, with limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def apportion(total: int, weights: Sequence[float | Fraction], limits: Sequence[int]) -> list[int]:
    """Divide `total` into integers in proportion to `weights`, each within its limit.

    The integers are ``min(limit, λ · weight)`` rounded down, with the λ that makes the unrounded
    sum equal to `total`; the remaining units are added to the largest remainders, on a tie to the
    first.
    All arithmetic is exact, so equal weights give equal unrounded shares.

    Args:
        total: The number to divide, 0 or more.
        weights: Finite, not negative.
        limits: One for each weight.

    Raises:
        ValueError: `total` exceeds the sum of the limits of positive weights.

    Source: Hamilton's method of apportionment, with limits added.

    >>> apportion(10, weights=[1, 1, 2], limits=[10, 10, 10])
    [3, 2, 5]
    >>> apportion(10, weights=[1, 1, 2], limits=[10, 10, 4])
    [3, 3, 4]
    """
    shares = [Fraction(0)] * len(weights)
    exact_weights = [Fraction(weight) for weight in weights]
    positive = [i for i, weight in enumerate(weights) if weight > 0]
    if total > (capacity := sum(limits[i] for i in positive)):
        raise ValueError(
            f"total={total}: the limits of positive weights add up to {capacity}; raise limits or "
            "make more weights positive"
        )
    positive.sort(key=lambda i: limits[i] / exact_weights[i])  # the order in which limits bind
    remaining = Fraction(total)
    remaining_weight = sum((exact_weights[i] for i in positive), Fraction(0))
    for i in positive:
        shares[i] = min(Fraction(limits[i]), remaining * exact_weights[i] / remaining_weight)
        remaining -= shares[i]
        remaining_weight -= exact_weights[i]
    parts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: parts[i] - shares[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts
