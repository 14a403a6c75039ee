"""PLATON: first-order importance weighted by its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kd_prune.pruning.checks import check_decay
from kd_prune.pruning.criteria.base import (
    State,
    StatefulCriterion,
    float_zeros,
    magnitude_if_unobserved,
    weight_times_gradient,
)


@dataclass(frozen=True, kw_only=True)
class PLATON(StatefulCriterion):
    """First-order importance times its uncertainty, so that uncertain weights are kept longer.

    With ``I = |w·g|``, from zeros, in this order::

        Ī ← beta1 · Ī + (1 − beta1) · I
        U ← beta2 · U + (1 − beta2) · |I − Ī|
        score = Ī · U

    Before the first gradient, weights are ranked by magnitude.

    Source: Zhang et al. 2022 (arXiv 2206.12562), section 3, and ``Pruner.py`` of
    QingruZhang/PLATON, where ``U`` also uses the updated ``Ī``. There both are updated every
    10 steps with the mean ``I`` of these steps, and ``w`` is read after the optimizer step; here at
    every step, with ``w`` and ``g`` of one backward pass. So their betas average over ten times as
    many steps.

    Args:
        beta1: Decay of ``Ī``.
        beta2: Decay of ``U``.

    Raises:
        ConfigError: A decay outside [0, 1).

    >>> import torch
    >>> criterion, weight = PLATON(beta1=0.5, beta2=0.5), torch.tensor([2.0, -1.0])
    >>> state = criterion.init_state(weight)
    >>> criterion.observe(weight, torch.tensor([1.0, 4.0]), state)
    >>> criterion(weight, state)  # Ī = (1, 2), U = (0.5, 1)
    tensor([0.5000, 2.0000])
    """

    elementwise = True

    beta1: float = 0.85
    beta2: float = 0.95

    def __post_init__(self) -> None:
        check_decay("beta1", self.beta1)
        check_decay("beta2", self.beta2)

    def init_state(self, weight: Tensor) -> State:
        """Return zero averages of importance and uncertainty."""
        return {"importance": float_zeros(weight), "uncertainty": float_zeros(weight)}

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: State) -> None:
        """Add this step's ``|w·g|`` to both moving averages."""
        current = weight_times_gradient(weight, grad_or_input).abs_()
        state["importance"].lerp_(current, 1.0 - self.beta1)
        deviation = current.sub_(state["importance"]).abs_()
        state["uncertainty"].lerp_(deviation, 1.0 - self.beta2)

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return ``Ī · U``."""
        score = state["importance"] * state["uncertainty"]
        return magnitude_if_unobserved(score, weight, state["importance"])
