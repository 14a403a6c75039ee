"""Build objects from composed settings: each `_target_` is called with the settings next to it.

Hydra's own `instantiate` reports the key of a failure in the text of its message only; here every
level adds its part to the key of the `ConfigError`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class, get_method, get_object, instantiate

from kd_prune.errors import UNSET, ConfigError, key_prefix


def build(settings: Any) -> Any:
    """Build whatever plain settings describe: objects, and mappings and lists of objects.

    Takes Hydra's `_target_`, `_partial_` and `_args_`; settings with `_recursive_` or `_convert_`
    are left to Hydra.

    Raises:
        ConfigError: An object cannot be built; with the full key of its settings.

    >>> build({"half": {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}})
    {'half': Fraction(1, 2)}
    >>> build({"third": {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 0}})
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: third: Fraction(1, 0)
    """
    if isinstance(settings, list):
        return [build_under(str(i), item) for i, item in enumerate(settings)]
    if not isinstance(settings, Mapping):
        return settings
    if "_recursive_" in settings or "_convert_" in settings:
        return call(instantiate, {"config": dict(settings)})
    if "_target_" not in settings:
        return {name: build_under(str(name), value) for name, value in settings.items()}
    arguments = {
        name: build_under(name, value)
        for name, value in settings.items()
        if name not in ("_target_", "_partial_", "_args_")
    }
    target = locate(settings["_target_"])
    if target in (get_class, get_method, get_object) and isinstance(arguments.get("path"), str):
        return locate(arguments["path"])
    positional = build_under("_args_", settings.get("_args_", []))
    if settings.get("_partial_", False):
        return functools.partial(target, *positional, **arguments)
    return call(target, arguments, positional)


def build_under(key: str, settings: Any) -> Any:
    """Build the settings of one key; a failure names it."""
    with key_prefix(key):
        return build(settings)


def locate(path: str) -> Any:
    """Return the object of a dotted path.

    Raises:
        ConfigError: It cannot be imported; the key is empty, and callers complete it.

    >>> locate("math.sqroot")
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: : math has no sqroot; did you mean sqrt?
    """
    try:
        return get_object(path)
    except Exception as error:
        parent, _, name = path.rpartition(".")
        try:
            names = dir(importlib.import_module(parent))
        except Exception:  # of any type: the module runs; the first error tells more
            raise ConfigError("", UNSET, one_line(error)) from error
        if name in names or f"{path}'" not in str(error):
            raise ConfigError("", UNSET, one_line(error)) from error
        meant = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {meant[0]}?" if meant else ""
        raise ConfigError("", UNSET, f"{parent} has no {name}", hint) from error


def call(target: Any, arguments: Mapping[str, Any], positional: list[Any] | None = None) -> Any:
    """Call a target; whatever it raises becomes a `ConfigError`, whose key its callers complete."""
    try:
        return target(*(positional or []), **arguments)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError("", UNSET, one_line(error)) from error


def one_line(error: BaseException) -> str:
    """Put an error's message in one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
