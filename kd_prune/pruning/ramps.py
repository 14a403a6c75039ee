"""Ramps: the shape of the rise from the initial to the final sparsity.

A ramp is a function from ramp progress to the completed fraction of the rise, both in [0, 1].
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kd_prune.errors import ConfigError, key_prefix
from kd_prune.pruning.checks import check_fraction

Ramp = Callable[[float], float]
"""Ramp progress → fraction of the rise, [0, 1] → [0, 1], non-decreasing. A ramp that rises at
certain points only may name them in an attribute `breakpoints`; see `ramp_updates`."""


def cubic(u: float) -> float:
    """Return ``1 - (1 - u)³``: fast at first, slow at the end.

    Source: Zhu & Gupta 2017 (arXiv 1710.01878), eq. 1.

    >>> [round(cubic(u), 3) for u in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.578, 0.875, 1.0]
    """
    return 1.0 - (1.0 - u) ** 3


def linear(u: float) -> float:
    """Return ``u``: the same number of weights at every update.

    Source: as `cubic`, with exponent 1.

    >>> linear(0.25)
    0.25
    """
    return u


def cosine(u: float) -> float:
    """Return ``½ · (1 - cos(π · u))``: slow at both ends.

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5, there for the learning rate.

    >>> [round(cosine(u), 3) for u in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.146, 0.5, 1.0]
    """
    return 0.5 * (1.0 - math.cos(math.pi * u))


def one_shot(u: float) -> float:
    """Return 1: the schedule has its final sparsity from `begin` on.

    Source: Han et al. 2015 (arXiv 1506.02626), section 3: prune, then retrain.

    >>> one_shot(0.0)
    1.0
    """
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Stepwise:
    """Step function from a table: ``levels[b]`` for the last ``b ≤ u``, and 0 before the first.

    `ramp_updates` makes one mask update per level, at the level's own step, and ignores `updates`.

    Args:
        levels: Ramp progress → fraction of the rise from there to the next entry. Progress must
            increase within [0, 1]; fractions must not decrease and end with 1. With
            ``Schedule(initial=0.0)`` a fraction is a fraction of `final`.

    Raises:
        ConfigError: The table is empty or breaks one of these rules.

    Source: Han et al. 2015 (arXiv 1506.02626), section 3.4, iterative pruning.

    >>> ramp = Stepwise(levels={0.2: 0.5, 0.6: 1.0})
    >>> [ramp(u) for u in (0.0, 0.2, 0.5, 0.6, 1.0)]
    [0.0, 0.5, 0.5, 1.0, 1.0]
    >>> from kd_prune.pruning import Schedule, ramp_updates
    >>> ramp_updates(Schedule(final=0.8, ramp=ramp), total_steps=10)
    {2: 0.4, 6: 0.8}
    """

    levels: Mapping[float, float]

    def __post_init__(self) -> None:
        points, fractions = list(self.levels), list(self.levels.values())
        for point, fraction in self.levels.items():
            with key_prefix("levels"):
                check_fraction("point", point, closed=True)
            check_fraction(f"levels[{point}]", fraction, closed=True)
        levels = dict(self.levels)
        if any(one >= other for one, other in pairwise(points)):
            raise ConfigError("levels", levels, f"points {points} do not increase", "sort them")
        if any(one > other for one, other in pairwise(fractions)):
            hint = "masks only lose weights, so fractions must not decrease"
            raise ConfigError("levels", levels, f"fractions {fractions} decrease", hint)
        if not fractions or fractions[-1] != 1.0:
            raise ConfigError(
                "levels",
                levels,
                "expected a table whose last fraction is 1.0",
                "fractions are of the rise from initial to final",
            )
        # A copy: a frozen ramp must not change with its argument.
        object.__setattr__(self, "levels", levels)

    def __call__(self, u: float) -> float:
        """Return the fraction of the rise at ramp progress `u`."""
        passed = bisect_right(self.breakpoints, u)
        return self.levels[self.breakpoints[passed - 1]] if passed else 0.0

    @property
    def breakpoints(self) -> Sequence[float]:
        """The values of ramp progress at which the ramp rises."""
        return tuple(self.levels)
