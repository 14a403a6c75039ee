"""matching_patterns: patterns that match given names and no others."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase


def matching_patterns(included: Collection[str], others: Collection[str]) -> list[str]:
    """Return patterns that match all `included` names and none of the `others`.

    Names that differ in numbers only become one pattern where it matches no other name.

    >>> matching_patterns(["layer.0.weight", "layer.1.weight"], ["head.weight"])
    ['layer.*.weight']
    >>> matching_patterns(["0.weight", "2.weight"], ["4.weight"])
    ['0.weight', '2.weight']
    """
    kinds: dict[str, list[str]] = {}
    for name in included:
        kinds.setdefault(number_pattern(name), []).append(name)
    patterns = list[str]()
    for pattern, names in kinds.items():
        clean = not any(fnmatchcase(name, pattern) for name in others)
        patterns += [pattern] if clean and names[1:] else map(_escaped, names)
    return patterns


def number_pattern(name: str) -> str:
    """Replace every number of a name by ``*``.

    >>> number_pattern("layer.12.weight")
    'layer.*.weight'
    """
    return re.sub(r"\b\d+\b", "*", _escaped(name))


def _escaped(name: str) -> str:
    """Escape brackets, which a pattern takes for a choice of letters."""
    return name.replace("[", "[[]")
