"""The task of a saved model, from the record of the run that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from kd_prune.cli.locations import CONF
from kd_prune.errors import UNSET, ConfigError
from kd_prune.results import run_of
from kd_prune.sweep import status


def with_recorded_task(config: DictConfig, folder: Path) -> DictConfig:
    """Take the task from the run that saved a model, unless the command names a task.

    Single settings of the task in the command (``task.validation=[test]``) still apply. Rows that
    were only learnt from, augmented or unlabelled ones, are left out. A relative path of the rows
    begins at the folder that the run's command was given in, if they are still there.

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
    path = plain["task"].get("path")
    if isinstance(path, str) and record.cwd and (there := Path(record.cwd, path)).exists():
        plain["task"]["path"] = str(there)
    both = OmegaConf.create(plain)
    for key in given:
        if key.startswith("task."):
            OmegaConf.update(both, key, OmegaConf.select(config, key), force_add=True)
    return both
