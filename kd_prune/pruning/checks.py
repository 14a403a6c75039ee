"""Validators of constructor arguments; each raises `ConfigError` with the argument's name.

They import no other part of the package, so that pure parts such as `Schedule` can use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd_prune.errors import ConfigError, ConfigTypeError


def check(name: str, value: Any, holds: bool, expected: str) -> None:
    """Raise ConfigError unless a condition on an argument holds.

    >>> check("decay", 1.5, 1.5 < 1, "a fraction in [0, 1)")
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: decay=1.5: expected a fraction in [0, 1)
    """
    if not holds:
        raise ConfigError(name, value, f"expected {expected}")


def check_fraction(name: str, value: float, *, closed: bool) -> None:
    """Raise ConfigError unless 0 ≤ value < 1 (`closed`: ≤ 1); ConfigTypeError for a string.

    >>> check_fraction("final", 95, closed=False)
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: final=95: expected a fraction in [0, 1); did you mean 0.95?
    """
    if isinstance(value, str):
        raise ConfigTypeError(name, repr(value), "expected a number")
    inside = 0.0 <= value <= 1.0 if closed else 0.0 <= value < 1.0
    if not inside:  # NaN included
        # Values below 2 are taken for mistaken fractions, not for percentages.
        hint = f"did you mean {value / 100:g}?" if 2.0 <= value < 100.0 else ""
        bounds = "[0, 1]" if closed else "[0, 1)"
        raise ConfigError(name, value, f"expected a fraction in {bounds}", hint)


def check_positive(name: str, value: int) -> None:
    """Raise ConfigError unless the value is an integer above 0."""
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    check(name, value, valid, "a positive integer")


def check_decay(name: str, value: float) -> None:
    """Raise ConfigError unless the value can be the decay of an exponential moving average."""
    expected = "a fraction in [0, 1): the weight of the previous average"
    check(name, value, 0 <= value < 1, expected)


def check_function(
    name: str, value: object, example: str, or_methods: Sequence[str] | None = None
) -> None:
    """Raise ConfigTypeError unless the value is callable or has all `or_methods`; refuse classes.

    >>> check_function("ramp", "cubic", "cubic or Stepwise()")
    Traceback (most recent call last):
    kd_prune.errors.ConfigTypeError: ramp='cubic': expected a function or an object, for example ...
    >>> class Steps: ...
    >>> check_function("ramp", Steps, "cubic")
    Traceback (most recent call last):
    kd_prune.errors.ConfigTypeError: ramp=Steps: expected an object, not its class; write Steps()
    """
    if isinstance(value, type):
        kind = value.__name__
        raise ConfigTypeError(name, kind, "expected an object, not its class", f"write {kind}()")
    if callable(value) or (or_methods and all(hasattr(value, method) for method in or_methods)):
        return
    expected = f"expected a function or an object, for example {example}"
    raise ConfigTypeError(name, repr(value), expected)


def check_kinds(
    *,
    criterion: object,
    allocation: object,
    granularity: object,
    update_schedule: object,
    regrow: object,
) -> None:
    """Raise ConfigTypeError where an argument of the Pruner is a string or a class.

    >>> valid = {"allocation": len, "granularity": len, "update_schedule": len, "regrow": False}
    >>> check_kinds(criterion="movement", **valid)
    Traceback (most recent call last):
    kd_prune.errors.ConfigTypeError: criterion='movement': expected a function or an object, ...
    """
    check_function("criterion", criterion, "magnitude or Movement()")
    check_function("allocation", allocation, "uniform or Global()")
    cross_tensor = ("pool_scores", "reachable_counts", "masks_for_model")
    check_function("granularity", granularity, "unstructured or NM()", cross_tensor)
    check_function("update_schedule", update_schedule, "ramp_updates")
    # `RigL` is not imported here; `MaskedParameters` checks that it is one.
    is_rigl = hasattr(regrow, "drop_and_grow") and not isinstance(regrow, type)
    if not isinstance(regrow, bool) and not is_rigl:
        shown = regrow.__name__ if isinstance(regrow, type) else repr(regrow)
        raise ConfigTypeError("regrow", shown, "expected True, False or RigL()")


def listed(names: Sequence[str]) -> str:
    """Write the first three names, and how many more there are, for a message.

    >>> listed(["a", "b"]), listed(["a", "b", "c", "d"])
    ('a, b', 'a, b, c and 1 more')
    """
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return f"{', '.join(names[:3])}{more}"
