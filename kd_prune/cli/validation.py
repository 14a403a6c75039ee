"""Checks of composed settings before anything is built: choices, missing values, types."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from kd_prune.errors import UNSET, ConfigError

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


def check_groups(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a group without an option (``~sparsity`` together with an experiment).

    Raises:
        ConfigError: A group has settings and no `_target_`.
    """
    for group in GROUPS:
        found = settings.get(group)
        if isinstance(found, dict) and "_target_" not in found:
            own = "; let a file of your own begin with defaults: [base]" if group == "task" else ""
            hint = f"choose one: {group}=…{own}"
            raise ConfigError(group, found, "these settings belong to no option", hint)


def check_missing(settings: Mapping[Any, Any]) -> None:
    """Refuse settings that an option leaves to the command (``???``) and the command does not give.

    Raises:
        ConfigError: A setting has no value.
    """
    for key in missing_keys(settings):
        raise ConfigError(key, UNSET, "has no default value", f"add {key}=…")


def missing_keys(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Yield the full keys of settings without a value.

    >>> list(missing_keys({"seed": 0, "task": {"name": "???"}}))
    ['task.name']
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from missing_keys(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}"


def check_choices(
    config: DictConfig,
    choices: Mapping[str, Any],
    *,
    many: bool = False,
    budgets: Collection[str] | None = None,
) -> None:
    """Check the options chosen from Hydra's groups.

    Args:
        config: The composed configuration.
        choices: Group → option.
        many: Whether this is one job of several.
        budgets: Names of all budgets, where the command names one (Hydra passes over an optional
            group's option that does not exist).

    Raises:
        ConfigError: An experiment's file lacks its package line; a search is started for one job; a
            budget does not exist; fixed masks are to reach a sparsity; ``sparsity=rpp`` has no
            proximal step; or a path is set with
            model=tiny, whose budget for random weights does not suit a pre-trained model.

    >>> config = OmegaConf.create({"model": {"path": "a/b"}})
    >>> check_choices(config, {"model": "tiny", "budget": "tiny"})
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: model.path=a/b: replaces model=tiny, but its budget would stay, ...
    """
    for group in ("budget", "debug", "experiment", "hparams_search"):
        if group in config:
            raise ConfigError(
                group,
                choices.get(group),
                "its settings are not at the top level",
                f"let {group}/{choices.get(group)}.yaml begin with the line # @package _global_",
            )
    if budgets is not None and (budget := choices.get("budget")) not in budgets:
        expected = "there is no such option"
        raise ConfigError("budget", budget, expected, f"there are {', '.join(sorted(budgets))}")
    if (search := choices.get("hparams_search")) and not many:
        raise ConfigError("hparams_search", search, "a search runs several jobs", "add -m")
    for group, option in choices.items():
        name, _, package = str(group).partition("@")
        if name == "sparsity" and option == "fixed":
            check_no_target_of_fixed_masks(config, package or "sparsity")
        if name == "sparsity" and option == "rpp":
            check_proximal_step(config, package or "sparsity")
    path = OmegaConf.select(config, "model.path", throw_on_resolution_failure=False)
    if choices.get("model") == choices.get("budget") == "tiny" and isinstance(path, str):
        raise ConfigError(
            "model.path",
            path,
            "replaces model=tiny, but its budget would stay, which is for random weights",
            f"write model=pretrained model.path={path}",
        )


def check_no_target_of_fixed_masks(config: DictConfig, key: str) -> None:
    """Refuse a target sparsity beside ``sparsity=fixed``, whose masks never change.

    Raises:
        ConfigError: It has one.

    >>> check_no_target_of_fixed_masks(OmegaConf.create({"sparsity": {"final": 0.9}}), "sparsity")
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: sparsity.final=0.9: sparsity=fixed keeps zeros and prunes ...
    """
    final = OmegaConf.select(config, f"{key}.final")
    if not final:
        return
    stages = OmegaConf.select(config, "stages") or {}
    keys = [f"stages.{name}.sparsity.final" for name in stages]
    pruning = [k for k in keys if k != f"{key}.final" and OmegaConf.select(config, k) is not None]
    raise ConfigError(
        f"{key}.final",
        final,
        "sparsity=fixed keeps zeros and prunes nothing",
        f"set {' or '.join(pruning)}" if pruning else f"set {key}.final=null",
    )


def check_proximal_step(config: DictConfig, key: str) -> None:
    """Refuse ``sparsity=rpp`` without the callback that makes weights small along its ramp.

    Raises:
        ConfigError: The fit has no such callback, so its ramp would prune all at once.

    >>> check_proximal_step(OmegaConf.create({"callbacks": {}}), "sparsity")
    Traceback (most recent call last):
    kd_prune.errors.ConfigError: sparsity=rpp: needs the proximal step, or all is pruned ...
    """
    callbacks = f"{key.rpartition('sparsity')[0]}callbacks"
    found = OmegaConf.select(config, callbacks) or {}
    if not any(one.get("_target_") == "kd_prune.lit.ReweightedL1" for one in found.values()):
        group = "callbacks" if key == "sparsity" else f"callbacks@{callbacks}"
        expected = "needs the proximal step, or all is pruned at once"
        raise ConfigError(key, "rpp", expected, f"add {group}=rpp")


def check_types(value: Any, hint: Any = None, key: str = "") -> None:
    """Compare values with the type hints of the classes and functions that take them.

    Args:
        value: Plain settings.
        hint: Type that is expected here; None allows everything.
        key: Full key of `value`.

    Raises:
        ConfigError: A value is of another type.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(option) or option for option in options]
    built = isinstance(value, dict) and "_target_" in value  # the built object may have any type
    if not built and all(map(is_checkable, kinds)) and not matches_type(value, kinds):
        raise ConfigError(key, value, *expectation(key, value, kinds))
    inner = next((get_args(option) for option in options if get_args(option)), ())
    if built:
        hints = parameter_types(value["_target_"])
        for name, item in value.items():
            check_types(item, hints.get(name), f"{key}.{name}".removeprefix("."))
    elif isinstance(value, dict):
        of_name, of_value = inner if len(inner) == 2 else (None, None)
        for name, item in value.items():
            check_types(name, of_name, key)
            check_types(item, of_value, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        check_texts(value, inner, key)
        for item in value:
            check_types(item, inner[0] if inner else None, key)


def check_texts(values: Sequence[Any], inner: Sequence[Any], key: str) -> None:
    """Refuse names that YAML reads as numbers or booleans (``task.labels=[0,1]``).

    Raises:
        ConfigError: A value is no text in a list of texts.
    """
    plain = all(isinstance(value, str | int | float) for value in values)
    if tuple(inner[:1]) == (str,) and plain and not all(isinstance(v, str) for v in values):
        words = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        names = ",".join(f'"{word}"' for word in words)
        raise ConfigError(key, values, "expected text", f"quote each: '{key}=[{names}]'")


def expectation(key: str, value: Any, kinds: Sequence[Any]) -> tuple[str, str]:
    """Return a text of the expected types, and a hint what to write instead, if known."""
    words = [EXPECTED.get(kind, f"a {kind.__name__} (_target_: …)") for kind in kinds]
    expected = f"expected {' or '.join(dict.fromkeys(words))}"
    if "a list" in words and isinstance(value, str | int | float):
        expected += f", {key}=[{value}]"
    if not (isinstance(value, str) and Callable in kinds):
        return expected, ""
    if "." in value:
        own = f"{{_target_: hydra.utils.get_method, path: {value}}}"
        return expected, f"of a module of yours it is {own}"
    option = f"{key.replace('.', '/')}={value}"
    return expected, f"an option is chosen with a slash, {option}"


def is_checkable(kind: Any) -> bool:
    """Return whether plain values can be checked against this type; others may accept text."""
    ours = isinstance(kind, type) and kind.__module__.startswith("kd_prune.")
    return kind in EXPECTED or kind is Callable or ours


def matches_type(value: Any, kinds: Sequence[Any]) -> bool:
    """Return whether a plain value is of one of these types."""
    if isinstance(value, list):
        return any(kind in kinds for kind in (list, tuple, Sequence, Collection))
    if isinstance(value, dict):
        return any(kind in kinds for kind in (dict, Mapping))
    # An int is accepted as float; a bool is not accepted as int.
    return type(value) in kinds or (type(value) is int and float in kinds)


def parameter_types(target: str) -> Mapping[str, Any]:
    """Return name → type hint of a target's parameters; empty if they cannot be read."""
    with contextlib.suppress(ImportError, NameError, TypeError, AttributeError):
        found = get_object(target)
        hints = get_type_hints(found.__init__ if isinstance(found, type) else found)  # type: ignore[misc]
        optional = [p.name for p in signature(found).parameters.values() if p.default is None]
        return hints | {name: hints[name] | None for name in optional if name in hints}
    return {}


def options_of(group: str, folders: Sequence[Path]) -> set[str]:
    """Return the names of a group's options in these folders of configuration."""
    return {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
