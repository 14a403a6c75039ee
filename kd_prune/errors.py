"""ConfigError: the error for a setting that cannot work, in every part of the package."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

UNSET: Any = object()
"""Stands for "no value to show": the message names the key alone."""


class ConfigError(ValueError):
    """A setting that cannot work: which one, its value, what is wrong with it, and what to do.

    The message reads ``<key>=<value>: <expected>; <hint>``. Inner layers give a short key, and
    outer layers put their prefix in front of it (`under`), so that no code parses a message.

    Args:
        key: Name of the setting, dotted below the top level (``terms.embeddings.weight``).
        value: Its value; `UNSET` where there is none to show.
        expected: What is wrong, or what was expected, as a clause.
        hint: What to do about it, as a clause; empty if `expected` says it.

    >>> error = ConfigError("final", 95, "expected a fraction in [0, 1)", "did you mean 0.95?")
    >>> print(error)
    final=95: expected a fraction in [0, 1); did you mean 0.95?
    >>> print(error.under("sparsity"))
    sparsity.final=95: expected a fraction in [0, 1); did you mean 0.95?
    """

    def __init__(self, key: str, value: Any = UNSET, expected: str = "", hint: str = "") -> None:
        super().__init__(key, value, expected, hint)
        self.key = key
        self.value = value
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        """Format one line: key, value, what is wrong, what to do."""
        setting = self.key if self.value is UNSET else f"{self.key}={format_value(self.value)}"
        return f"{setting}: {'; '.join(filter(None, (self.expected, self.hint)))}"

    def under(self, prefix: str) -> ConfigError:
        """Return the same error with `prefix` and a dot in front of the key."""
        key = f"{prefix}.{self.key}" if self.key else prefix
        return type(self)(key, self.value, self.expected, self.hint)


class ConfigTypeError(ConfigError, TypeError):
    """A setting of the wrong type: a name or a class where an object is expected."""


@contextmanager
def key_prefix(prefix: str) -> Iterator[None]:
    """Put `prefix` in front of the key of a `ConfigError` that is raised inside.

    >>> with key_prefix("teacher"):
    ...     raise ConfigError("lr", -1, "expected a number above 0")
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: teacher.lr=-1: expected a number above 0
    """
    try:
        yield
    except ConfigError as error:
        raise error.under(prefix) from error


def format_value(value: Any) -> str:
    """Format a value as the command line writes it, a function by its dotted name.

    >>> format_value(None), format_value(True), format_value("a"), format_value(["a", 1])
    ('null', 'true', 'a', '[a, 1]')
    >>> format_value(format_value)
    'kd_prune.errors.format_value'
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(format_value, value))}]"
    if inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if str(value) == object.__repr__(value):
        return f"{type(value).__module__}.{type(value).__qualname__}()"  # without its address
    return str(value)
