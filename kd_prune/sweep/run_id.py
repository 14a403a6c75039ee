"""Names of sweeps and of their jobs, made from the configuration.

A job is named after its task, method, sparsity and seed, and a hash of every setting that its
result depends on: the same settings always lead to the same folder, other settings to another.
Hydra's configuration uses these names as ``${kd_prune.sweep:…}`` and ``${kd_prune.job:}``; both
resolvers exist once this module is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

IGNORED_KEYS = (
    "cache_dir",
    "ckpt_path",
    "checkpoint_minutes",
    "logger",
    "search",
    "sweep",
    "hydra",
)
"""Top-level keys that a result does not depend on: folders, logs, settings of a sweep."""
CACHE_KEY = "cache_dir"
"""Key that is ignored at every depth: generated tasks and models have a cache folder too."""


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash the settings that a run's result depends on.

    >>> config_hash({"seed": 1, "cache_dir": "a"}) == config_hash({"seed": 1.0, "cache_dir": "b"})
    True
    """
    depends = {key: value for key, value in config.items() if key not in IGNORED_KEYS}
    return _digest(normalized(json.loads(json.dumps(depends, default=str))))


def job_name(root: DictConfig) -> str:
    """Name a job: ``mrpc-sparsebert-s0.95-seed1-3fa9c1d2``."""
    config: dict[str, Any] = {}
    for key in map(str, root):
        if key in IGNORED_KEYS:
            continue
        try:
            value = root[key]
            config[key] = (
                OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            )
        except OmegaConfBaseException:  # the job reports the error; here it only needs a name
            config[key] = str(root._get_node(key))
    method = OmegaConf.select(root, "hydra.runtime.choices.distillation", default="")
    final = OmegaConf.select(root, "sparsity.final", default=None)
    choice = OmegaConf.select(root, "hydra.runtime.choices.sparsity", default="none")
    sparsity = "as_is" if final is None else f"s{final}"  # as_is: zeros of the start are kept
    sparsity = "dense" if choice == "none" else sparsity
    task = OmegaConf.select(root, "task.name", default="")
    parts = (task, method, sparsity, f"seed{config.get('seed')}", config_hash(config))
    return "-".join(_slug(part) for part in parts if part)


def sweep_name(overrides: Iterable[str]) -> str:
    """Name a sweep: the keys that it sweeps over, and a hash of all overrides.

    >>> sweep_name(["task=mrpc,stsb", "seed=1,2"]) == sweep_name(["seed=1,2", "task=mrpc,stsb"])
    True
    >>> sweep_name(["task=mrpc,stsb", "seed=1,2"])
    'seed-task-5b36ef86'
    """
    command = sorted(o for o in overrides if not o.lstrip("+~").startswith("sweep."))
    swept = [o.split("=")[0].lstrip("+~") for o in command if re.search(r"=.*[,(]", o)]
    return "-".join([*(_slug(key) for key in swept), _digest(command)])


def normalized(value: Any) -> Any:
    """Drop cache folders and write whole floats as integers: 0 and 0.0 are the same setting.

    >>> normalized({"a": [1.0, 0.5, True], "cache_dir": "here"})
    {'a': [1, 0.5, True]}
    """
    if isinstance(value, dict):
        return {key: normalized(v) for key, v in value.items() if key != CACHE_KEY}
    if isinstance(value, list):
        return [normalized(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _slug(text: Any) -> str:
    return re.sub(r"[^\w.+]+", "_", str(text))


def _sweep(name: str | None, overrides: Iterable[str]) -> str:
    return name or sweep_name(overrides)


def _job(*, _root_: DictConfig) -> str:
    return job_name(_root_)


# Cached by the arguments as written: Hydra copies the cache to every job, so that all jobs of a
# sweep name its folder by the overrides of the command and not by their own.
OmegaConf.register_new_resolver("kd_prune.sweep", _sweep, use_cache=True, replace=True)
OmegaConf.register_new_resolver("kd_prune.job", _job, replace=True)
