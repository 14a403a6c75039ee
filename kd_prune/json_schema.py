"""JSON files that are read into dataclasses; what does not fit is said in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from kd_prune import atomic_io

T = TypeVar("T")
PLAIN_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "None": type(None),
    "Mapping": Mapping,
    "Sequence": (list, tuple),
}
PLAIN_TYPES_IN_WORDS = {
    "str": "text",
    "int": "number",
    "float": "number",
    "bool": "true or false",
    "Mapping": "mapping",
    "Sequence": "list",
}


class SchemaError(ValueError):
    """A file, or a value in it, that does not match its schema."""


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file atomically."""
    atomic_io.write(path, json.dumps(values, indent=2, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: The file cannot be read.
        SchemaError: The file contains no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SchemaError("it is no text") from error
    except RecursionError as error:
        raise SchemaError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise SchemaError(f"half-written or no JSON ({error})") from error
    if not isinstance(values, dict):
        raise SchemaError("it holds no JSON object")
    return values


def mapping_at(values: Any, key: str) -> Mapping[str, Any]:
    """Return the mapping that `values` holds at a key.

    Raises:
        SchemaError: There is none.
    """
    found = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(found, Mapping):
        raise SchemaError(f"it has no {key!r}")
    return found


def restore(kind: type[T], values: Any, **parts: Any) -> T:
    """Make an object of a dataclass from plain values and parts; unknown keys are ignored.

    Raises:
        SchemaError: A value is missing, or is of another type than its field's annotation says.
    """
    if not isinstance(values, Mapping):
        raise SchemaError(f"it holds {values!r} where a {kind.__name__} belongs")
    schema: tuple[Field[Any], ...] = fields(kind)  # type: ignore[arg-type]
    given = {f.name: values[f.name] for f in schema if f.name in values} | parts
    required = [f.name for f in schema if f.default is f.default_factory is MISSING]
    if lacking := [name for name in required if name not in given]:
        raise SchemaError(f"it has no {', '.join(map(repr, lacking))}")
    for f in schema:
        if f.name in given and not _fits(str(f.type), given[f.name]):
            kind_of_value = PLAIN_TYPES_IN_WORDS[str(f.type).partition("[")[0].partition(" ")[0]]
            raise SchemaError(f"{f.name} is {given[f.name]!r}, no {kind_of_value}")
    try:
        return kind(**given)
    except TypeError as error:
        raise SchemaError(f"a value is of another type ({error})") from error


def _fits(annotation: str, value: Any) -> bool:
    """Return whether a value is of one of the types that an annotation names."""
    names = [name.partition("[")[0].strip() for name in re.split(r"\|(?![^\[]*\])", annotation)]
    return any(isinstance(value, PLAIN_TYPES.get(name, object)) for name in names)
