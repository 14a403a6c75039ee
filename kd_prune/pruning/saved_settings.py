"""Saved settings: a state is loaded with the ramp and the kind of pruning it was saved with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from kd_prune.errors import ConfigError, format_value
from kd_prune.pruning.criteria import StatefulCriterion
from kd_prune.pruning.update_schedule import UpdateSchedule


def described_settings(
    criterion: object, allocation: object, granularity: object
) -> dict[str, str]:
    """Return the settings that a saved state depends on, as text.

    Of a criterion the kind alone: its numbers (a decay, a rate) may change when a run is resumed.

    >>> described_settings(len, lambda masks, score, sparsity: {}, "rows")
    {'criterion': 'builtins.len', 'allocation': '...<lambda>', 'granularity': 'rows'}
    """
    kind = type(criterion) if isinstance(criterion, StatefulCriterion) else criterion
    return {
        "criterion": kind.__qualname__ if isinstance(kind, type) else _describe(kind),
        "allocation": _describe(allocation),
        "granularity": _describe(granularity),
    }


def check_same_settings(own: Mapping[str, str], saved: Mapping[str, str]) -> None:
    """Raise ConfigError where a state was saved with other settings than it is loaded with."""
    for key, value in own.items():
        if saved.get(key, value) != value:
            expected = f"the saved state was made with {key}={saved[key]}"
            raise ConfigError(key, value, expected, "resume with the same")


def check_same_ramp(own: UpdateSchedule, saved: UpdateSchedule, total_steps: int) -> None:
    """Raise ValueError where a state was saved with other mask updates, of a run of equal length.

    >>> check_same_ramp({1: 0.5, 2: 0.9}, {1: 0.5, 2: 0.8}, total_steps=2)
    Traceback (most recent call last):
    ValueError: the saved state is of another ramp: for step 2 of 2 it plans 0.8, ...
    """
    for step in sorted({*own, *saved}):
        if not math.isclose(own.get(step, -1.0), saved.get(step, -1.0)):
            raise ValueError(
                f"the saved state is of another ramp: for step {step} of {total_steps} it plans "
                f"{saved.get(step, 'no update')}, the settings here "
                f"{own.get(step, 'no update')}; resume with the same schedule"
            )


def _describe(value: object) -> str:
    """Format a setting as text that is the same in every process: without addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", format_value(value))
