"""Zeros that weights have before pruning begins: kept, or pruned and trained like other weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from kd_prune.errors import ConfigError, ConfigTypeError
from kd_prune.pruning.checks import listed
from kd_prune.pruning.schedule import Schedule
from kd_prune.pruning.selection import count_pruned

_WORTH_NAMING = 0.1  # share of a tensor: a few zeros that train and compete surprise nobody
_ROUNDING = 0.01  # share of the scope by which a pruned model may miss its sparsity (full groups)


class InitialZerosWarning(UserWarning):
    """Weights are zero at the start, and the treatment of these zeros may not be the one meant."""


def set_initial_masks(
    masks: Mapping[str, Tensor], schedule: Schedule | None, keep_zeros: bool | None
) -> str:
    """Decide in place which zeros at the start are pruned weights; return what to warn of.

    A tensor of zeros only is new (B of LoRA, a layer initialized with zeros), not pruned: under a
    schedule its mask keeps everything, or it could never train. Other zeros stay pruned if
    `keep_zeros` says so or, if it is None, where they are meant: without a schedule, and in a scope
    that is at ``schedule.initial`` already (above 0), as that of a pruned model pruned further.
    Elsewhere they are values of an initialization (an identity, `sparse_`, a layer widened by
    zeros) and compete like any other weight.

    Args:
        masks: Name → mask of the weights that are not zero; changed in place.
        schedule: The schedule; None: no weight is pruned.
        keep_zeros: True or False decides; None: as said above.

    Returns:
        A warning that names the tensors concerned; empty where there is nothing to say.

    Raises:
        ConfigTypeError: `keep_zeros` is neither a bool nor None.
        ConfigError: `keep_zeros` is False without a schedule.
    """
    if not isinstance(keep_zeros, bool | None):
        raise ConfigTypeError("keep_zeros", repr(keep_zeros), "expected True, False or None")
    if keep_zeros is False and schedule is None:
        raise ConfigError(
            "keep_zeros", False, "without a schedule (final=None) zeros are kept, and no more"
        )
    zeros = {name: n for name, mask in masks.items() if (n := count_pruned(mask))}
    all_zero = [name for name, n in zeros.items() if n == masks[name].numel()]
    if keep_zeros is None:
        rest = {name: mask.numel() for name, mask in masks.items() if name not in all_zero}
        found = sum(n for name, n in zeros.items() if name in rest)
        keep_zeros = schedule is None or _is_reached(schedule.initial, found, sum(rest.values()))
    if schedule is None and not zeros:
        return "no weight in scope is zero, so none is kept at zero (final=None prunes no others)"
    if schedule is None:
        return _message(all_zero, "zero altogether, so kept at zero; leave new weights out")
    for name in all_zero if keep_zeros else zeros:
        masks[name].fill_(True)
    if keep_zeros:
        return _message(all_zero, "zero altogether, so taken for new weights, not for pruned ones")
    shares = {name: n / masks[name].numel() for name, n in zeros.items()}
    return _message(
        [f"{name} ({share:.3g})" for name, share in shares.items() if share > _WORTH_NAMING],
        "weights that are zero at the start (their share in brackets) train, and are pruned like "
        "others; keep_zeros=True keeps the zeros of a pruned model",
    )


def _is_reached(sparsity: float, zeros: int, size: int) -> bool:
    return sparsity > 0 and zeros >= (sparsity - _ROUNDING) * size > 0


def _message(names: list[str], says: str) -> str:
    return f"{listed(names)}: {says}" if names else ""
