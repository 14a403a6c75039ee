"""Checks of constructor arguments that must be a scope or a name."""

from __future__ import annotations

from kd_prune.errors import ConfigTypeError
from kd_prune.pruning.scope import Scope


def check_scope(value: object) -> None:
    """Raise ConfigTypeError unless the value is a `Scope` or None.

    >>> check_scope("e.*")
    Traceback (most recent call last):
    kd_prune.errors.ConfigTypeError: scope=e.*: expected a Scope; write Scope(include=['e.*'])
    """
    if isinstance(value, Scope | None):
        return
    patterns = [value] if isinstance(value, str) else value
    example = list(patterns) if isinstance(patterns, list | tuple) else ["*.weight"]
    raise ConfigTypeError("scope", value, "expected a Scope", f"write Scope(include={example})")


def check_name(key: str, value: object) -> None:
    """Raise ConfigTypeError unless the value is a string or None."""
    if not isinstance(value, str | None):
        kind = f"{type(value).__name__}(…)"
        raise ConfigTypeError(key, kind, "expected a name, as submodule='student'")
