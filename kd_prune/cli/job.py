"""Check a composed configuration, build its job and describe the job for its record."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_prune.cli import launch, validation
from kd_prune.cli.build import build, one_line
from kd_prune.errors import UNSET, ConfigError
from kd_prune.results import Status

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from kd_prune.pipeline import Job

COMMAND_KEYS = ("eval", "pretraining", "search", "sweep", "hydra")
"""Settings that are not arguments of the job: the command's own, and those that stages refer to."""


def make_job(config: DictConfig, out: Path) -> Job:
    """Check a composed configuration and build its job.

    Args:
        config: The composed configuration.
        out: The run folder.

    Raises:
        ConfigError: A setting cannot work; with the full key of the setting.
    """
    import torch

    from kd_prune.pipeline import cache_folder

    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key or ""), UNSET, one_line(error)) from error
    validation.check_groups(plain)
    validation.check_missing(plain)
    validation.check_types(plain)
    refuse_unknown_settings(plain)
    cache_folder(plain["cache_dir"])
    torch.manual_seed(plain["seed"])  # a module with weights is then the same in every process
    job: Job = build({key: value for key, value in plain.items() if key not in COMMAND_KEYS})
    return dataclasses.replace(job, out=out, config=plain)


def refuse_unknown_settings(settings: Mapping[str, Any]) -> None:
    """Refuse a setting that no part of the job reads.

    Raises:
        ConfigError: There is one, as after ``+trainr.max_epochs=1``.
    """
    from kd_prune.pipeline import Job

    known = {field.name for field in dataclasses.fields(Job)} | {"_target_", *COMMAND_KEYS}
    if unknown := [name for name in settings if name not in known]:
        meant = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {meant[0]}?" if meant else "see kd-prune train --help"
        raise ConfigError(unknown[0], expected="there is no such setting", hint=hint)


@contextlib.contextmanager
def keys_as_set(config: DictConfig) -> Iterator[None]:
    """Name the setting that a refused one refers to, which is where a command can change it.

    Raises:
        ConfigError: As raised inside, with the key that `key_as_set` finds.
    """
    try:
        yield
    except ConfigError as error:
        if (key := key_as_set(OmegaConf.to_container(config), error.key)) == error.key:
            raise
        raise ConfigError(key, error.value, error.expected, error.hint) from error


def key_as_set(settings: Any, key: str) -> str:
    """Follow interpolations on the way to a key.

    Args:
        settings: Plain settings with interpolations as text.
        key: The full key of a setting.

    >>> words = {"task": "${pretraining.task}"}
    >>> key_as_set({"stages": {"words": words}}, "stages.words.task.path")
    'pretraining.task.path'
    >>> text = {"task": {"_target_": "kd_prune.hf.as_text", "task": "${pretraining.task}"}}
    >>> key_as_set({"stages": {"general": text}}, "stages.general.task.path")
    'pretraining.task.path'
    """
    node, parts = settings, key.split(".")
    for i, part in enumerate(parts):
        if isinstance(node, dict) and part not in node and "task" in node:
            node = node["task"]  # of a function that makes a task of another
        elif isinstance(node, dict):
            node = node.get(part)
            part = ""
        if isinstance(node, str) and (reference := re.fullmatch(r"\$\{([\w.]+)\}", node)):
            rest = [reference[1], *filter(None, [part]), *parts[i + 1 :]]
            return key_as_set(settings, ".".join(rest))
    return key


def check_command(config: DictConfig) -> None:
    """Check the chosen options of the command that is running.

    Raises:
        ConfigError: See `validation.check_choices` and `launch.check_nodes`.
    """
    launch.check_nodes(config)
    hydra = HydraConfig.get()
    folders = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    named = any(override.startswith("budget=") for override in hydra.overrides.task)
    validation.check_choices(
        config,
        hydra.runtime.choices,
        many=launch.is_sweep() or launch.is_child_rank(config),
        budgets=validation.options_of("budget", folders) if named else None,
    )


def trial_callbacks(config: DictConfig) -> dict[str, Callback]:
    """Make the callback that ends a poor trial of a search early; none for other jobs."""
    if config.search.trial is None:
        return {}
    from kd_prune.lit.trial_stopping import TrialStoppingCallback
    from kd_prune.sweep.study import MedianStoppingRule

    final = OmegaConf.select(config, "sparsity.final") or 0.0
    rule = MedianStoppingRule(final=final, **config.search)
    return {"search": TrialStoppingCallback(rule, f"val/{config.task.monitor}")}


def describe(config: DictConfig) -> Status:
    """Describe a job for its record, also a job that cannot be built."""
    plain: Any = None
    with contextlib.suppress(OmegaConfBaseException):
        plain = OmegaConf.to_container(config, resolve=True)
    hydra = HydraConfig.get()
    return Status(
        state="running",
        task=OmegaConf.select(config, "task.name"),
        seed=OmegaConf.select(config, "seed"),
        monitor=OmegaConf.select(config, "task.monitor"),
        choices={
            group: option
            for group, option in hydra.runtime.choices.items()
            if not group.startswith("hydra")
        },
        overrides=list(hydra.overrides.task),
        config=plain,
        cwd=hydra.runtime.cwd,
    )
