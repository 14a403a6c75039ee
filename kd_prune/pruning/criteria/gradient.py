"""First-order criteria: Taylor importance and movement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_prune.pruning.checks import check, check_decay
from kd_prune.pruning.criteria.base import (
    State,
    StatefulCriterion,
    float_zeros,
    magnitude_if_unobserved,
    weight_times_gradient,
)


@dataclass(frozen=True, kw_only=True)
class Taylor(StatefulCriterion):
    """First-order change of the loss if the weight were zero: a moving average of ``|w·g|``.

    ``S ← decay · S + (1 − decay) · |w·g|``, from ``S = 0``. Before the first gradient, weights are
    ranked by magnitude.

    Source: Molchanov et al. 2019 (arXiv 1906.10771), section 3, with a weight as the unit. There
    the score is ``(w·g)²``, which gives the same ranking for one step. Decay 0.9 is from their
    configurations.

    Args:
        decay: Weight of the previous average at each step; 0 uses the last gradient alone.

    Raises:
        ConfigError: `decay` outside [0, 1).

    >>> criterion, weight = Taylor(decay=0.5), torch.tensor([2.0, -1.0])
    >>> state = criterion.init_state(weight)
    >>> criterion.observe(weight, torch.tensor([1.0, 3.0]), state)
    >>> criterion(weight, state)
    tensor([1.0000, 1.5000])
    """

    elementwise = True

    decay: float = 0.9

    def __post_init__(self) -> None:
        check_decay("decay", self.decay)

    def init_state(self, weight: Tensor) -> State:
        """Return a zero average."""
        return {"score": float_zeros(weight)}

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: State) -> None:
        """Add this step's ``|w·g|`` to the moving average."""
        state["score"].lerp_(weight_times_gradient(weight, grad_or_input).abs_(), 1.0 - self.decay)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return the moving average."""
        return magnitude_if_unobserved(state["score"], weight, state["score"])


@dataclass(frozen=True, kw_only=True)
class Movement(StatefulCriterion):
    """Movement away from zero, ``S ← S − rate · w·g`` from ``S = 0``.

    Before the first gradient, weights are ranked by magnitude.

    Source: Sanh et al. 2020 (arXiv 2005.07683), section 4 and table 1: the sum that their scores
    accumulate with the straight-through estimator under plain gradient descent. (Their code trains
    the scores with Adam.) A pruned weight keeps its score, and returns only with regrowth.

    Args:
        rate: Factor of all scores; it does not change the ranking.

    Raises:
        ConfigError: `rate` not above 0.

    >>> criterion, weight = Movement(), torch.tensor([2.0, 2.0])
    >>> state = criterion.init_state(weight)
    >>> criterion.observe(weight, torch.tensor([1.0, -1.0]), state)  # descent: down, up
    >>> criterion(weight, state)
    tensor([-2.,  2.])
    """

    elementwise = True

    rate: float = 1.0

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def init_state(self, weight: Tensor) -> State:
        """Return a zero sum."""
        return {"score": float_zeros(weight)}

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: State) -> None:
        """Subtract this step's ``rate · w·g`` from the sum."""
        state["score"].sub_(weight_times_gradient(weight, grad_or_input), alpha=self.rate)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return the sum."""
        return magnitude_if_unobserved(state["score"], weight, state["score"])


def check_rate(rate: float) -> None:
    """Raise ConfigError unless the rate is positive: a negative rate reverses the ranking."""
    check("rate", rate, 0 < rate < torch.inf, "a number > 0; a negative rate reverses the ranking")
