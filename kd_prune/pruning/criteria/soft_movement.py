"""Soft movement pruning: trained scores with a penalty, to be cut by a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_prune.pruning.checks import check
from kd_prune.pruning.criteria.base import (
    State,
    StatefulCriterion,
    float_zeros,
    magnitude_if_unobserved,
    weight_times_gradient,
)
from kd_prune.pruning.criteria.gradient import check_rate


@dataclass(frozen=True, kw_only=True)
class SoftMovement(StatefulCriterion):
    """Movement scores trained with a penalty, so that a threshold decides how many weights stay.

    Scores ``S``, initially 0, are trained with Adam (learning rate `rate`, betas 0.9 and 0.999) on
    the loss plus ``penalty · mean σ(S)``. With the straight-through estimator the gradient is::

        G = w·g + penalty · σ(S)·(1 − σ(S)) / n       n: weights of the tensor

    The score is ``σ(S)``; `Threshold` prunes weights with a score of at most 0.1, `uniform` prunes
    by rank. Before the first gradient the score is ``σ(|w|)``, which is above that threshold and
    ranks by magnitude. The penalty alone moves a score from ½ to 0.1 in 276 steps at a rate of
    0.01, so a run should have several times as many. The state takes three float32 per weight.

    Source: Sanh et al. 2020 (arXiv 2005.07683), section 4.3, and their code, where the mean is also
    over the tensors: their λ is `penalty` times the number of tensors (400 on SQuAD: 5.6 for the 72
    matrices of BERT-base). There λ rises with the cubic schedule; here it is constant.

    Args:
        penalty: Weight of the mean of ``σ(S)`` in the loss; 0 disables the penalty.
        rate: Learning rate of ``S``.

    Raises:
        ConfigError: `rate` not above 0, `penalty` below 0.

    >>> criterion = SoftMovement(rate=1.0, penalty=1.0)
    >>> weight = torch.tensor([2.0, 2.0])
    >>> state = criterion.init_state(weight)
    >>> criterion.observe(weight, torch.tensor([1.0, -1.0]), state)  # Adam's first step: the rate
    >>> criterion(weight, state)
    tensor([0.2689, 0.7311])
    """

    elementwise = True

    penalty: float
    rate: float = 0.01

    def __post_init__(self) -> None:
        check_rate(self.rate)
        valid = 0 <= self.penalty < torch.inf
        check("penalty", self.penalty, valid, "a number ≥ 0 (0: no penalty)")

    def init_state(self, weight: Tensor) -> State:
        """Return zero scores, zero first and second moments, and a step count of 0."""
        steps = torch.zeros((), dtype=torch.int64, device=weight.device)
        moments = {name: float_zeros(weight) for name in ("movement", "mean", "mean_square")}
        return moments | {"steps": steps}

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: State) -> None:
        """Make one Adam step on the scores."""
        sigmoid = state["movement"].sigmoid()
        gradient = weight_times_gradient(weight, grad_or_input)
        gradient.add_(sigmoid * (1.0 - sigmoid), alpha=self.penalty / weight.numel())
        steps = state["steps"].add_(1)
        mean = state["mean"].lerp_(gradient, 1.0 - 0.9)
        square = state["mean_square"].lerp_(gradient.square(), 1.0 - 0.999)
        # Bias corrections 1 − betaᵗ; expm1 keeps their digits in float32.
        correction, square_correction = (-(steps * math.log(beta)).expm1() for beta in (0.9, 0.999))
        denominator = (square / square_correction).sqrt_().add_(1e-8)
        state["movement"].sub_((mean / correction).div_(denominator), alpha=self.rate)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return ``σ(S)``, in [0, 1]."""
        score = magnitude_if_unobserved(state["movement"], weight, state["steps"])
        return score.sigmoid()
