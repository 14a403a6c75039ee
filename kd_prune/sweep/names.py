"""Names of sweeps and their jobs, made of what tells them apart.

A job is named after its task, method, sparsity and seed, and a hash of everything that its result
depends on: whoever asks for the same thing again comes to the same folder, and nobody else does.
Hydra's configuration uses these names as ``${kd_prune.sweep:…}`` and ``${kd_prune.job:}``, which
exist once this module is imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# What a result does not depend on: places, records, how a sweep is gone about.
PLACES = ("cache_dir", "ckpt_path", "checkpoint_minutes", "logger", "search", "sweep", "hydra")
ANYWHERE = "cache_dir"
"""Also within other keys: what makes a model or a task is told where to keep it."""


def identity(config: Mapping[str, Any]) -> str:
    """Hash of what a run's result depends on.

    >>> identity({"seed": 1, "cache_dir": "here"}) == identity({"seed": 1.0, "cache_dir": "there"})
    True
    """
    depends = {key: value for key, value in config.items() if key not in PLACES}
    return _digest(plain_setting(json.loads(json.dumps(depends, default=str))))


def job_name(root: DictConfig) -> str:
    """Name of a job: ``mrpc-sparsebert-s0.95-seed1-3fa9c1d2``."""
    config: dict[str, Any] = {}
    for key in map(str, root):
        if key in PLACES:
            continue
        try:
            value = root[key]
            config[key] = (
                OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            )
        except OmegaConfBaseException:  # the job itself is going to fail over it
            config[key] = str(root._get_node(key))
    method = OmegaConf.select(root, "hydra.runtime.choices.distillation", default="")
    final = OmegaConf.select(root, "sparsity.final", default=None)
    sparsity = "as_is" if "sparsity" in config else "dense"  # as_is: what is zero stays so
    sparsity = sparsity if final is None else f"s{final}"
    task = OmegaConf.select(root, "task.name", default="")
    parts = (task, method, sparsity, f"seed{config.get('seed')}", identity(config))
    return "-".join(_plain(part) for part in parts if part)


def sweep_name(overrides: Iterable[str]) -> str:
    """Name of a sweep: what it sweeps over, and a hash of the whole command.

    >>> sweep_name(["task=mrpc,stsb", "seed=1,2"]) == sweep_name(["seed=1,2", "task=mrpc,stsb"])
    True
    >>> sweep_name(["task=mrpc,stsb", "seed=1,2"])
    'seed-task-5b36ef86'
    """
    command = sorted(o for o in overrides if not o.lstrip("+~").startswith("sweep."))
    swept = [o.split("=")[0].lstrip("+~") for o in command if re.search(r"=.*[,(]", o)]
    return "-".join([*(_plain(key) for key in swept), _digest(command)])


def plain_setting(value: Any) -> Any:
    """Without caches, and a number without a point where it needs none: 0 and 0.0 are one setting.

    >>> plain_setting({"a": [1.0, 0.5, True], "cache_dir": "here"})
    {'a': [1, 0.5, True]}
    """
    if isinstance(value, dict):
        return {key: plain_setting(v) for key, v in value.items() if key != ANYWHERE}
    if isinstance(value, list):
        return [plain_setting(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _plain(text: Any) -> str:
    return re.sub(r"[^\w.+]+", "_", str(text))


def _sweep(name: str | None, overrides: Iterable[str]) -> str:
    return name or sweep_name(overrides)


def _job(*, _root_: DictConfig) -> str:
    return job_name(_root_)


# Cached, under the arguments as they are written: Hydra hands the cache on, so that all jobs of a
# sweep take their folder from the overrides of the command instead of their own.
OmegaConf.register_new_resolver("kd_prune.sweep", _sweep, use_cache=True, replace=True)
OmegaConf.register_new_resolver("kd_prune.job", _job, replace=True)
