"""SquareHead (arXiv 2310.06927), a term of bench-study."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_prune.distillation import Activations
from kd_prune.distillation.losses import hidden_state_mse

EPSILON = 1e-6


def square_head(student: Activations, teacher: Activations, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute ``Σ_l MSE(s_l, t_l) / (MSE(0, t_l) + ε)`` over the layers, means of real tokens."""
    mask = batch["attention_mask"]
    pairs = zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True)
    return torch.stack(
        [
            hidden_state_mse(s, t, mask)
            / (hidden_state_mse(torch.zeros_like(t), t, mask) + EPSILON)
            for s, t in pairs
        ]
    ).sum()
