"""Wanda: magnitude times the norm of the layer's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_prune.errors import ConfigError
from kd_prune.pruning.criteria.base import State, StatefulCriterion


@dataclass(frozen=True, kw_only=True)
class Wanda(StatefulCriterion):
    """Magnitude times the root mean square of the input feature: ``|w_ij| · ‖x_j‖₂ / √rows``.

    ``x_j`` is input feature ``j`` over all rows since the last mask update: tokens of a linear
    layer, positions of a convolution, where the norm of a channel applies to all kernel positions.
    Before the first input the norm counts as 1. Padded tokens count as rows.

    Source: Sun et al. 2023 (arXiv 2306.11695), eq. 1. Dividing by the number of rows, as their code
    does, keeps layers with different numbers of rows comparable. The paper compares weights within
    an output row only; here the granularity and the allocation decide which weights compete.

    Weights are (out, in) or, for convolutions with groups=1, (out, in, …).

    Raises:
        ConfigError: A weight with one dimension; an input whose number of features is not the
            weight's.

    >>> criterion, weight = Wanda(), torch.tensor([[1.0, -1.0]])
    >>> state = criterion.init_state(weight)
    >>> criterion.observe(weight, torch.tensor([[3.0, 0.0], [3.0, 2.0]]), state)
    >>> criterion(weight, state)
    tensor([[3.0000, 1.4142]])
    """

    observes = "input"

    def init_state(self, weight: Tensor) -> State:
        """Return zero sums of squares per input feature, (in,), and a row count of 0."""
        if weight.ndim < 2:
            raise ConfigError(
                "criterion",
                self,
                f"weight of shape {tuple(weight.shape)}: expected (out, in) or (out, in, …)",
                "leave biases and norms out of the scope",
            )
        rows = torch.zeros((), dtype=torch.int64, device=weight.device)
        squares = torch.zeros(weight.shape[1], dtype=torch.float32, device=weight.device)
        return {"squares": squares, "rows": rows}

    def observe(self, weight: Tensor, grad_or_input: Tensor, state: State) -> None:
        """Add the rows of one input to the sums."""
        axis = -1 if weight.ndim == 2 else 1
        features, shape = weight.shape[1], tuple(grad_or_input.shape)
        if not (-len(shape) <= axis < len(shape) and shape[axis] == features):
            raise ConfigError(
                "criterion",
                self,
                f"input of shape {shape}: expected {features} features on axis {axis}, as in the "
                f"weight {tuple(weight.shape)}",
                "leave grouped and transposed convolutions and embeddings out of the scope",
            )
        rows = grad_or_input.detach().movedim(axis, -1).reshape(-1, features).float()
        state["squares"].add_(rows.square().sum(0))
        state["rows"].add_(len(rows))

    def __call__(self, weight: Tensor, state: State) -> Tensor:
        """Return ``|w_ij| · ‖x_j‖₂ / √rows``."""
        squares, rows = state["squares"], state["rows"]
        norm = (squares / rows).sqrt().where(rows > 0, torch.ones_like(squares))
        return weight.detach().abs().float() * norm.view(-1, *[1] * (weight.ndim - 2))

    def after_update(self, state: State) -> None:
        """Discard the inputs of the denser network."""
        state["squares"].zero_()
        state["rows"].zero_()
