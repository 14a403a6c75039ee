"""Replaced parameters: weights that a pruner still masks and that the module no longer has."""

from __future__ import annotations

import warnings

from torch import nn

from kd_prune.pruning.checks import listed
from kd_prune.pruning.pruner import Pruner


def warn_of_replaced_parameters(pruner: Pruner, module: nn.Module, label: str) -> None:
    """Warn where the module has other parameter objects than those that were pruned.

    A layer that is assigned anew after the fit has begun, or ``load_state_dict(…, assign=True)``,
    makes new ones, which no mask knows.

    Args:
        pruner: The pruner, at the end of a fit.
        module: The module that was fitted.
        label: The callback as messages call it.
    """
    present = {id(parameter) for parameter in module.parameters()}
    lost = [name for name, weight in pruner.parameters.items() if id(weight) not in present]
    if lost:
        warnings.warn(
            f"{listed(lost)}: replaced by other parameters during the fit, so {label} "
            "did not prune what the module has now; replace layers in configure_model or "
            "__init__, and load weights in place",
            stacklevel=3,
        )
