"""Settings that cannot be: held against what their classes take, and told in one line."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

GROUPS = ("task", "model", "sparsity", "distillation", "optimizer", "trainer")
EXPECTED = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    Sequence: "a list",
    Collection: "a list",
    tuple: "a list",
    list: "a list",
    Mapping: "a mapping {name: value}",
    dict: "a mapping {name: value}",
    type(None): "null",
}


def check_options(settings: Mapping[str, Any]) -> None:
    """Find settings of a group of which no option was chosen (`~sparsity`, beside an experiment).

    Raises:
        ValueError: There are some; the message names the group.
    """
    for group in GROUPS:
        found = settings.get(group)
        if isinstance(found, dict) and "_target_" not in found:
            raise ValueError(f"{group}={found}: belongs to no option; choose one: {group}=…")


def check_types(value: Any, hint: Any = None, key: str = "") -> None:
    """Hold values against what their classes say they take.

    Raises:
        ValueError: A value is of another type; the message names its key.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(option) or option for option in options]
    made = isinstance(value, dict) and "_target_" in value  # what it makes can be anything
    if not made and all(map(tellable, kinds)) and not fits(value, kinds):
        words = (EXPECTED.get(kind, f"a {kind.__name__} (_target_: …)") for kind in kinds)
        shown = "null" if value is None else value
        raise ValueError(f"{key}={shown}: expected {' or '.join(dict.fromkeys(words))}")
    inner = next((get_args(option) for option in options if get_args(option)), ())
    if made:
        hints = arguments(value["_target_"])
        for name, one in value.items():
            check_types(one, hints.get(name), f"{key}.{name}".removeprefix("."))
    elif isinstance(value, dict):
        of_name, of_value = inner if len(inner) == 2 else (None, None)
        for name, one in value.items():
            check_types(name, of_name, key)
            check_types(one, of_value, f"{key}.{name}")
    elif isinstance(value, list):
        for one in value:
            check_types(one, inner[0] if inner else None, key)


def tellable(kind: Any) -> bool:
    """Whether a value from YAML shows whether it is of this type; others may take text for it."""
    ours = isinstance(kind, type) and kind.__module__.startswith("kd_prune.")
    return kind in EXPECTED or kind is Callable or ours


def fits(value: Any, kinds: Sequence[type]) -> bool:
    """Whether a value from YAML is of one of these types."""
    if isinstance(value, list):
        return any(kind in kinds for kind in (list, tuple, Sequence, Collection))
    if isinstance(value, dict):
        return any(kind in kinds for kind in (dict, Mapping))
    # A whole number will do for any; a switch is none, though Python counts it as one.
    return type(value) in kinds or (type(value) is int and float in kinds)


def arguments(target: str) -> Mapping[str, Any]:
    """Name → type of what a class or function takes; empty where that cannot be told."""
    with contextlib.suppress(ImportError, NameError, TypeError, AttributeError):
        found = get_object(target)
        hints = get_type_hints(found.__init__ if isinstance(found, type) else found)  # type: ignore[misc]
        optional = [p.name for p in signature(found).parameters.values() if p.default is None]
        return hints | {name: hints[name] | None for name in optional if name in hints}
    return {}


def one_line(error: BaseException, config: DictConfig | None = None) -> str:
    """What was wrong, without Hydra's wrapping; arguments by their full key."""
    key = ""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        _, _, key = str(error).rpartition("full_key: ")
        error = error.__cause__
    message = " ".join(str(error).split())
    argument = message.partition("=")[0]
    key = key.strip()
    if not isinstance(error, ValueError):  # Python's own words, which name no key
        return f"{key}: {message}" if key else message
    known = OmegaConf.select(config, key) if config is not None and key else None
    return f"{key}.{message}" if known is not None and argument in known else message


def misspelt(error: BaseException, overrides: Sequence[str], conf: Path) -> str:
    """Hydra's word on an override that fits nothing, with the key that may have been meant."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):  # names no override
        pairs = [override.partition("=") for override in overrides]
        wrong = [
            f"{group}={option}"
            for group, _, option in pairs
            if (conf / group).is_dir() and not (conf / group / f"{option}.yaml").is_file()
        ]
        hint = "expected the name of an option; a dense student is sparsity.final=0"
        return f"{' '.join(wrong)}: {hint}" if wrong else one_line(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        cause = cause.__cause__
    message = one_line(error)
    if cause is None or cause.parent_node is None:
        return message
    full, last = str(cause.full_key), str(cause.key)
    keys = [str(key) for key in cause.parent_node]
    if meant := difflib.get_close_matches(last, keys, n=1):
        return f"{full}: there is no such key; did you mean {full.removesuffix(last)}{meant[0]}?"
    return f"{full}: there is no such key; there are {', '.join(keys)}"
