"""Settings as on the command line: nested ones as dotted keys, texts as quoted values."""

from __future__ import annotations

import re
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


def quote_value(value: str) -> str:
    r"""Quote a text for Hydra's grammar of overrides.

    >>> print(quote_value("/my runs/lr=1"))
    "/my runs/lr=1"
    """
    # A backslash escapes only where it stands before a quote, the closing one included.
    return '"{}"'.format(re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", value)))
