"""One-line errors for commands that Hydra cannot compose, with similar options or keys."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import Container, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from kd_prune.cli import validation
from kd_prune.cli.arguments import FLAGS
from kd_prune.cli.build import one_line
from kd_prune.cli.locations import CONF, file_to_write
from kd_prune.errors import ConfigError


def describe_composition_error(error: BaseException, overrides: Sequence[str]) -> str:
    """Describe why Hydra could not compose the command.

    Args:
        error: Exception of Hydra or OmegaConf.
        overrides: Arguments of the command.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return suggest_option(error.missing_cfg_file, error.options, overrides)
    causes = list(chain_of(error))
    for cause in causes:
        if isinstance(cause, ConfigError):  # of a sweeper or launcher that Hydra builds
            return str(cause)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return describe_value_error(error, overrides)
    for cause in causes:
        parent = getattr(cause, "parent_node", None)
        if isinstance(cause, InterpolationToMissingValueError) and parent is not None:
            # Hydra's own settings have no value before the job runs.
            settings = plain_without_hydra(parent._get_root())
            try:
                validation.check_missing(settings)
            except ConfigError as missing:
                return str(missing)
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and parent is not None:
            return suggest_key(str(cause.full_key), str(cause.key), parent, overrides)
    return one_line(causes[-1] if isinstance(error, InstantiationException) else error)


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__


def describe_value_error(error: BaseException, overrides: Sequence[str]) -> str:
    """Describe an error of Hydra's that names no override: a value is given for a group."""
    pairs = [override.partition("=") for override in overrides]
    wrong = [
        f"{group}={option}"
        for group, _, option in pairs
        if (CONF / group).is_dir() and not (CONF / group / f"{option}.yaml").is_file()
    ]
    hint = (
        "expected the name of an option; a level is sparsity.final=0.9, a dense student "
        "sparsity.final=0"
    )
    return f"{' '.join(wrong)}: {hint}" if wrong else one_line(error)


def describe_yaml_error(error: yaml.MarkedYAMLError) -> str:
    """Describe a YAML error by file, line and problem."""
    mark = error.problem_mark or error.context_mark
    place = f"{mark.name}, line {mark.line + 1}: " if mark else ""
    return " ".join(f"{place}no YAML ({error.problem or error})".split())


def suggest_option(file: str, options: Sequence[str], overrides: Sequence[str]) -> str:
    """Suggest an option of a group for one that has no file.

    >>> suggest_option("task/imdb", ["mrpc", "sst2"], ["task=imdb"]).rpartition("; or write ")[0]
    'task=imdb: there is no such option; there are mrpc, sst2'
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
    given = "; a folder of yours is given by --config-dir <folder>"
    return f"{said}; or {file_to_write(f'{group}/{option}')}{first}{given}"


def suggest_key(full: str, last: str, parent: Container, overrides: Sequence[str] = ()) -> str:
    """Suggest a key for one that does not exist: the most similar name at or below its parent.

    Args:
        full: The key, dotted.
        last: Its last part.
        parent: Settings that it was looked for in.
        overrides: Arguments of the command.
    """
    said = f"{full}: there is no such key"
    if "/" in last:
        groups = [str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir()]
        meant = difflib.get_close_matches(last, groups, n=1)
        return f"{said}; did you mean {meant[0]}?" if meant else said
    plain = plain_without_hydra(parent)
    if full == f"trainer.{last}" and last in validation.parameter_types(plain.get("_target_", "")):
        return f"{said} here, but Lightning's Trainer takes it; add it with a plus: +{full}=…"
    keys = list(keys_of(plain))
    names = sorted({key.rpartition(".")[2] for key in keys})
    if meant := difflib.get_close_matches(last, names, n=1, cutoff=0.7):
        found = [key for key in keys if key.rpartition(".")[2] == meant[0]]
        depth = min(key.count(".") for key in found)
        found.sort(key=lambda key: key.startswith("teacher."))  # the student's first
        shown = [full.removesuffix(last) + key for key in found if key.count(".") == depth][:3]
        return f"{said}; did you mean {' or '.join(shown)}?"
    if plain.get("_target_") == "kd_prune.pipeline.dense":
        group = full.rpartition(".")[0]
        return f"{said}: {group}=none prunes nothing; choose another, as {group}=sparsebert"
    if not keys:
        return f"{said} yet; add it with a plus: +{full}=…"
    option = chosen_option(full.rpartition(".")[0].replace(".", "/"), overrides)
    place = f" in {option}" if option else ""
    return f"{said}{place}; there are {', '.join(key for key in keys if '.' not in key)}"


def chosen_option(group: str, overrides: Sequence[str]) -> str:
    """Return a group with its chosen option, or an empty text if there is none or it is unknown.

    >>> chosen_option("sparsity/granularity", ["sparsity/granularity=nm", "seed=1"])
    'sparsity/granularity=nm'
    >>> chosen_option("search", [])
    ''
    """
    if not group or not (CONF / group).is_dir():
        return ""
    keys = [override.partition("=")[0].lstrip("+~").partition("@")[0] for override in overrides]
    groups = [o for o, key in zip(overrides, keys, strict=True) if key and (CONF / key).is_dir()]
    GlobalHydra.instance().clear()
    # Options in a folder of the user's are not found here, and a sweep chooses several.
    with (
        contextlib.suppress(HydraException),
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        config = compose("train", overrides=groups, return_hydra_config=True)
        if option := config.hydra.runtime.choices.get(group):
            return f"{group}={option}"
    return ""


def suggest_flag(flag: str) -> str:
    """Suggest a flag, or a setting of the default command, for a flag that does not exist.

    >>> suggest_flag("--mutlirun"), suggest_flag("--final")
    ('did you mean --multirun?', 'settings have no dashes, did you mean sparsity.final=…?')
    """
    if meant := difflib.get_close_matches(flag, FLAGS, n=1, cutoff=0.8):
        return f"did you mean {meant[0]}?"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        keys = list(keys_of(plain_without_hydra(compose("train"))))
    name = flag.lstrip("-").replace("-", "_")
    found = [key for key in keys if key == name or key.endswith(f".{name}")]
    found.sort(key=lambda key: (key.startswith("teacher."), key.count(".")))
    hint = f", did you mean {found[0]}=…?" if found else ": key=value"
    return f"settings have no dashes{hint}"


def plain_without_hydra(config: Container) -> dict[str, Any]:
    """Return settings as plain values, unresolved; empty for a list."""
    plain = OmegaConf.to_container(config, resolve=False)
    return {str(k): v for k, v in plain.items() if k != "hydra"} if isinstance(plain, dict) else {}


def keys_of(settings: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the full keys of all settings, at any depth; Hydra's own (`_target_`) are left out.

    >>> list(keys_of({"optimizer": {"_target_": "x", "lr": 1}}))
    ['optimizer', 'optimizer.lr']
    """
    for key, value in settings.items():
        if not str(key).startswith("_"):
            yield str(key)
            yield from (f"{key}.{k}" for k in keys_of(value if isinstance(value, dict) else {}))
