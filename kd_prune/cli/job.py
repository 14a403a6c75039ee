"""Check a composed configuration, build its job and describe the job for its record."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd_prune.cli import launch, validation
from kd_prune.cli.build import build, one_line
from kd_prune.cli.locations import CONF
from kd_prune.errors import UNSET, ConfigError
from kd_prune.results import Status, run_of
from kd_prune.sweep import status

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
    cache_folder(plain["cache_dir"])
    torch.manual_seed(plain["seed"])  # a module with weights is then the same in every process
    job: Job = build({key: value for key, value in plain.items() if key not in COMMAND_KEYS})
    return dataclasses.replace(job, out=out, config=plain)


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
    from kd_prune.sweep.search import MedianStoppingRule

    final = OmegaConf.select(config, "sparsity.final") or 0.0
    rule = MedianStoppingRule(final=final, **config.search)
    return {"search": TrialStoppingCallback(rule, f"val/{config.task.monitor}")}


def with_recorded_task(config: DictConfig, folder: Path) -> DictConfig:
    """Take the task from the run that saved a model, unless the command names a task.

    Single settings of the task in the command (``task.validation=[test]``) still apply. Rows that
    were only learnt from, augmented or unlabelled ones, are left out.

    Args:
        config: The composed configuration.
        folder: A run folder, or a student in one.

    Raises:
        ConfigError: There is no record and the command says nothing of a task, or changes a part
            (``task/kind``) without naming one; the record asks for a call that the configuration
            does not make, or for a value of this machine; a folder may come from an untrusted
            source.
    """
    record = status.read(run_of(folder))
    given = [o.lstrip("+").partition("=")[0] for o in HydraConfig.get().overrides.task]
    if "task" in given:
        return config
    if parts := [key for key in given if key.startswith("task/")]:
        expected = "changes a part of a task that the command does not name"
        raise ConfigError(parts[0], UNSET, expected, "name the task too, as task=…")
    if record is None or not record.config:
        if any(key.startswith(("task.", "experiment")) for key in given):
            return config
        found = "has no record of its task" if folder.exists() else "no such folder"
        hint = "name the task, as task=mrpc" if folder.exists() else "with a hub id name the task"
        raise ConfigError("eval", folder, found, hint)
    kinds = {OmegaConf.load(file)._target_ for file in (CONF / "task" / "kind").glob("*.yaml")}

    def refused(key: str, problem: str) -> ConfigError:
        hint = "name its task, as in the command that made it"
        return ConfigError("eval", folder, f"its {key} {problem}", hint)

    def merged(ours: Any, theirs: Any, key: str) -> Any:
        if isinstance(theirs, str) and "${" in theirs:
            raise refused(key, "contains an interpolation")
        if isinstance(theirs, list):
            return [merged(None, item, f"{key}.{i}") for i, item in enumerate(theirs)]
        if not isinstance(theirs, dict):
            return theirs
        ours = ours if isinstance(ours, dict) else {}
        target, known = theirs.get("_target_"), {ours.get("_target_")}
        if target not in (kinds if key == "task.kind" else known):
            raise refused(key, f"is made by {target}")
        if special := [name for name in theirs if name.startswith("_") and name != "_target_"]:
            raise refused(key, f"contains {special[0]}")
        return ours | {
            name: merged(ours.get(name), value, f"{key}.{name}")
            for name, value in theirs.items()
            if f"{key}.{name}" not in {"task.augment", "task.unlabelled", *given}
        }

    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)  # noqa: S101  it is a DictConfig
    plain["task"] = merged(plain["task"], record.config["task"], "task")
    both = OmegaConf.create(plain)
    for key in given:
        if key.startswith("task."):
            OmegaConf.update(both, key, OmegaConf.select(config, key), force_add=True)
    return both


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
    )
