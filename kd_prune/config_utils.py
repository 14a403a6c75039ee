"""Conversion of nested settings to dotted keys, as on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key → value of every setting, at any depth.

    >>> flatten({"a": {"b": 1, "c": [2]}, "d": None})
    {'a.b': 1, 'a.c': [2], 'd': None}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def quoted(value: str) -> str:
    r"""Quote a text for Hydra's grammar of overrides.

    >>> print(quoted("/my runs/lr=1"))
    "/my runs/lr=1"
    """
    return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))
