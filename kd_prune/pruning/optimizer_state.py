"""Access to an optimizer's parameters, gradients and state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from kd_prune.pruning.step_hooks import optimizer_chain


def optimizer_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def unscaled_gradients(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], scale: float | Tensor
) -> dict[str, Tensor]:
    """Return name → gradient of those of `parameters` that the optimizer updates.

    Args:
        optimizer: The optimizer, before its step. ``optimizer.grad_scale``, which a GradScaler sets
            on fused optimizers, takes the place of `scale`.
        parameters: Name → parameter.
        scale: Factor of the gradients, divided out.
    """
    updated = {id(weight) for weight in optimizer_parameters(optimizer)}
    gradients = {
        name: weight.grad
        for name, weight in parameters.items()
        if weight.grad is not None and id(weight) in updated
    }
    scale = getattr(optimizer, "grad_scale", None) or scale
    if scale == 1.0:
        return gradients
    return {name: gradient / scale for name, gradient in gradients.items()}


def reset_optimizer_state(
    optimizers: Iterable[Optimizer], weight: nn.Parameter, where: Tensor
) -> None:
    """Set optimizer state of the masked weights to zero: outdated momentum would move them.

    Of an optimizer that wraps another, the state of both.
    """
    for optimizer in (inner for outer in optimizers for inner in optimizer_chain(outer)):
        for value in getattr(optimizer, "state", {}).get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(where, 0.0)
