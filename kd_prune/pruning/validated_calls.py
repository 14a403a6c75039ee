"""Calls of criteria, allocations and granularities that validate the returned values."""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

from kd_prune.errors import ConfigError, format_value
from kd_prune.pruning.allocation import Allocation
from kd_prune.pruning.criteria import Criterion, State, StatefulCriterion, magnitude
from kd_prune.pruning.selection import Counts, Masks, Score, contains_nan


def compute_scores(
    criterion: Criterion | StatefulCriterion,
    name: str,
    weight: Tensor,
    state: State | None,
    step: int | None = None,
) -> Tensor:
    """Return float32 scores of a weight.

    Args:
        criterion: The criterion.
        name: Name of the parameter, for messages.
        weight: The weight.
        state: The state of a `StatefulCriterion` for this weight.
        step: Completed optimizer steps, for messages.

    Raises:
        ValueError: The weight or a score is NaN.
        ConfigError: The scores do not have the weight's shape.
    """
    if contains_nan(weight):
        at_step = "" if step is None else f" at step {step}"
        raise ValueError(
            f"{name} contains NaN{at_step}, so its weights cannot be ranked: training has "
            "diverged; lower the learning rate or clip the gradients"
        )
    if criterion is magnitude:
        return magnitude(weight).float()  # no NaN either
    score: Any
    if isinstance(criterion, StatefulCriterion):
        score = criterion(weight, {} if state is None else state)
    else:
        score = criterion(weight)
    shape = tuple(score.shape) if isinstance(score, Tensor) else score
    if shape != tuple(weight.shape):
        expected = (
            f"gives scores of shape {shape} for {name}; expected the weight's, "
            f"{tuple(weight.shape)}"
        )
        raise ConfigError("criterion", criterion, expected)
    if contains_nan(score):
        raise ValueError(
            f"criterion={format_value(criterion)}: gives NaN for {name}, so its weights cannot be "
            "ranked"
        )
    result: Tensor = score.float()
    return result


def try_criterion(criterion: StatefulCriterion, name: str, weight: Tensor) -> None:
    """Call a criterion once on one weight, so that a broken one fails before training.

    A criterion of layer inputs only scores: which inputs there are is known in a forward pass.

    Raises:
        ConfigError: It cannot be called so, or its scores have another shape.
    """
    try:
        state = criterion.init_state(weight)
        if criterion.observes == "gradient":
            criterion.observe(weight, torch.zeros_like(weight), state)
        compute_scores(criterion, name, weight, state)
    except (TypeError, RuntimeError, LookupError) as error:
        raise ConfigError("criterion", criterion, f"cannot score a weight ({error})") from error


def compute_counts(
    allocation: Allocation, masks: Masks, score: Score, sparsity: float, current: Masks
) -> Counts:
    """Return how many weights of each tensor to prune.

    Args:
        allocation: The allocation.
        masks: Candidates that the allocation ranks, True = may be kept.
        score: Name → scores.
        sparsity: Target sparsity.
        current: The masks in force.

    Raises:
        ConfigError: A count is missing, no integer, or not from 0 to the tensor's size.
    """
    counts = dict(allocation(masks, score, sparsity))
    for name, mask in current.items():
        try:
            counts[name] = index(counts[name])
        except (KeyError, TypeError):
            counts[name] = -1
        if not 0 <= counts[name] <= mask.numel():
            expected = f"gave no integer from 0 to the {mask.numel()} weights of {name}"
            raise ConfigError("allocation", allocation, expected)
    return counts


def check_mask_shape(granularity: object, name: str, mask: Tensor, current: Tensor) -> None:
    """Raise ConfigError unless a new mask has the shape of the current one."""
    if mask.shape != current.shape:
        expected = (
            f"gives a mask of shape {tuple(mask.shape)} for {name}; expected the weight's, "
            f"{tuple(current.shape)}"
        )
        raise ConfigError("granularity", granularity, expected)
