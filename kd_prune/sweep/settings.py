"""Settings that cannot be: held against what their classes take, and told in one line."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

GROUPS = ("task", "model", "sparsity", "distillation", "optimizer", "trainer")
# What other programs call our keys, where no likeness would tell.
OTHERS_SAY = {
    **dict.fromkeys(("target", "amount", "level", "target_sparsity", "sparsity_level"), "final"),
    "learning_rate": "lr",
    "gpus": "devices",
    "scheduler": "schedule",
}
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
            own = "; let a file of your own begin with defaults: [base]" if group == "task" else ""
            raise ValueError(f"{group}={found}: belongs to no option; choose one: {group}=…{own}")


def check_missing(config: DictConfig) -> None:
    """Find settings that an option leaves to the command (`???`).

    Raises:
        ValueError: There are some; the message names one.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{missing[0]}: has no value of its own here; give it, {missing[0]}=…")


def check_choices(config: DictConfig, choices: Mapping[str, Any], *, many: bool = False) -> None:
    """Hold the chosen options against what has become of them.

    Args:
        config: The composed configuration.
        choices: Group → option.
        many: Whether this is one job of several.

    Raises:
        ValueError: An experiment's file does not say that it is about everything; a folder is
            asked for under `model=tiny`, whose learning rates ruin what is pre-trained; or a
            search under a command that is for one job.

    >>> check_choices(OmegaConf.create({"model": {"path": "a/b"}}), {"model": "tiny"})
    Traceback (most recent call last):
    ValueError: model.path=a/b: model=tiny, which it would replace, brings learning rates for ...
    """
    for group in ("experiment", "hparams_search"):
        if group in config:
            raise ValueError(
                f"{group}={choices.get(group)}: its settings are in a group of their own; let "
                f"{group}/{choices.get(group)}.yaml begin with the line # @package _global_"
            )
    if (search := choices.get("hparams_search")) and not many:
        raise ValueError(f"hparams_search={search}: one job searches nothing; say -m too")
    path = OmegaConf.select(config, "model.path", throw_on_resolution_failure=False)
    if choices.get("model") == "tiny" and isinstance(path, str):
        raise ValueError(
            f"model.path={path}: model=tiny, which it would replace, brings learning rates for "
            f"random weights along; write model=pretrained model.path={path}"
        )


def check_types(value: Any, hint: Any = None, key: str = "") -> None:
    """Hold values against what their classes say they take.

    Raises:
        ValueError: A value is of another type; the message names its key.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(option) or option for option in options]
    made = isinstance(value, dict) and "_target_" in value  # what it makes can be anything
    if not made and all(map(tellable, kinds)) and not fits(value, kinds):
        words = [EXPECTED.get(kind, f"a {kind.__name__} (_target_: …)") for kind in kinds]
        shown = "null" if value is None else value
        said = f"{key}={shown}: expected {' or '.join(dict.fromkeys(words))}"
        if "a list" in words and isinstance(value, str | int | float):
            said += f", {key}=[{shown}]"
        if isinstance(value, str) and Callable in kinds:
            own = f"{{_target_: hydra.utils.get_method, path: {value}}}"
            option = f"an option is chosen with a slash, {key.replace('.', '/')}={value}"
            said += f"; of a module of yours it is {own}" if "." in value else f"; {option}"
        raise ValueError(said)
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
    if missing := re.search(r"Missing mandatory value: (\S+)", message):
        return f"{missing[1]}: has no value of its own here; give it, {missing[1]}=…"
    argument = message.partition("=")[0]
    key = key.strip()
    if not isinstance(error, ValueError):  # Python's own words, which name no key
        return f"{key}: {message}" if key else message
    known = OmegaConf.select(config, key) if config is not None and key else None
    return f"{key}.{message}" if known is not None and argument in known else message


def unreadable(error: yaml.MarkedYAMLError) -> str:
    """What is wrong with a file of settings, and where."""
    mark = error.problem_mark or error.context_mark
    place = f"{mark.name}, line {mark.line + 1}: " if mark else ""
    return " ".join(f"{place}no YAML ({error.problem or error})".split())


def misspelt(error: BaseException, overrides: Sequence[str], conf: Path) -> str:
    """Hydra's word on an override that fits nothing, with what may have been meant."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return no_option(error.missing_cfg_file, error.options, overrides)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):  # names no override
        pairs = [override.partition("=") for override in overrides]
        wrong = [
            f"{group}={option}"
            for group, _, option in pairs
            if (conf / group).is_dir() and not (conf / group / f"{option}.yaml").is_file()
        ]
        hint = (
            "expected the name of an option; a level is sparsity.final=0.9, a dense student "
            "sparsity.final=0"
        )
        return f"{' '.join(wrong)}: {hint}" if wrong else one_line(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        cause = cause.__cause__
    if cause is None or cause.parent_node is None:
        return one_line(error)
    return no_key(str(cause.full_key), str(cause.key), cause.parent_node, conf)


def no_option(file: str, options: Sequence[str], overrides: Sequence[str]) -> str:
    """What to say of a group's option that no file describes.

    >>> no_option("task/imdb", ["mrpc", "sst2"], ["task=imdb"])
    'task=imdb: there is no such option; there are mrpc, sst2; or write conf/task/imdb.yaml'
    """
    group, _, option = file.rpartition("/")
    for given, _, value in (override.partition("=") for override in overrides):
        bare = given.lstrip("+").partition("@")[0]
        if f"{bare}/{value}" == file:  # a value may have slashes of its own
            group, option = bare, value
    said = f"{group}={option}: there is no such option"
    if group == "model" and ("/" in option or option.startswith(("~", "."))):
        return f"{said}; a folder or hub id is model=pretrained model.path={option}"
    if meant := difflib.get_close_matches(option, options, n=1):
        return f"{said}; did you mean {group}={meant[0]}?"
    said = f"{said}; there are {', '.join(options)}"
    if group == "model":
        return f"{said}; any other is model=pretrained model.path=<folder or hub id>"
    if not option.isidentifier():
        return said
    first = ", first line # @package _global_" if group == "experiment" else ""
    return f"{said}; or write conf/{group}/{option}.yaml{first}"


def no_key(full: str, last: str, parent: Container, conf: Path) -> str:
    """What to say of a key that is not in `parent`: the one that was meant, here or further in."""
    said = f"{full}: there is no such key"
    if "/" in last:
        groups = [str(path.relative_to(conf)) for path in conf.rglob("*") if path.is_dir()]
        meant = difflib.get_close_matches(last, groups, n=1)
        return f"{said}; did you mean {meant[0]}?" if meant else said
    plain = OmegaConf.to_container(parent, resolve=False)
    if not isinstance(plain, dict):
        return said
    plain.pop("hydra", None)
    there = list(keys_of(plain))
    here = [key for key in there if "." not in key]
    if full == f"trainer.{last}" and last in arguments(plain.get("_target_", "")):
        return f"{said} here, but Lightning's Trainer takes it; add it with a plus: +{full}=…"
    name = OTHERS_SAY.get(last, last)
    ends = {key: key.rpartition(".")[2] for key in there}
    for wanted in (
        [name],
        difflib.get_close_matches(name, here, n=1),
        [end for end in ends.values() if name in end.split("_")],
        difflib.get_close_matches(name, sorted(set(ends.values())), n=1, cutoff=0.75),
    ):
        # What is nearest the root, and of the student's before of the teacher's.
        if meant := [key for key, end in ends.items() if end in wanted]:
            least = min(key.count(".") for key in meant)
            meant = sorted(meant, key=lambda key: key.startswith("teacher."))
            shown = [full.removesuffix(last) + k for k in meant if k.count(".") == least][:3]
            return f"{said}; did you mean {' or '.join(shown)}?"
    if not here:
        return f"{said} yet; add it with a plus: +{full}=…"
    return f"{said}; there are {', '.join(here)}"


def keys_of(settings: Mapping[Any, Any]) -> Iterator[str]:
    """The full keys of all settings, at any depth; Hydra's own (`_target_`) are left out.

    >>> list(keys_of({"optimizer": {"_target_": "x", "lr": 1}}))
    ['optimizer', 'optimizer.lr']
    """
    for key, value in settings.items():
        if not str(key).startswith("_"):
            yield str(key)
            yield from (f"{key}.{k}" for k in keys_of(value if isinstance(value, dict) else {}))
