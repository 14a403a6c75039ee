"""Fingerprints: plain descriptions of parts, and hashes of what an outcome depends on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from lightning.fabric.plugins import ClusterEnvironment

import kd_prune
from kd_prune.pipeline.stage import Stage
from kd_prune.plain_settings import UnknownPartError, plain_settings

SINGLE_FIT_SETTINGS = (
    "max_epochs",
    "max_steps",
    "max_time",
    "devices",
    "num_nodes",
    "strategy",
)
"""Settings of the trainer that only the student's fit uses: other stages have their own limits and
one process."""

DISPLAY_SETTINGS = (
    "enable_progress_bar",
    "enable_model_summary",
    "log_every_n_steps",
    "profiler",
)
"""Settings of the trainer that no outcome depends on."""


def describe_each(values: Mapping[str, Any], *, skip_unknown: bool) -> dict[str, Any]:
    """Describe each of several values by `plain_settings`: name → description.

    Args:
        values: Name → value.
        skip_unknown: Leave out a value that has no such description.

    Raises:
        UnknownPartError: As in `plain_settings`, unless `skip_unknown`.
    """
    described: dict[str, Any] = {}
    for name, value in values.items():
        try:
            described[name] = plain_settings(value)
        except UnknownPartError:
            if not skip_unknown:
                raise
    return described


def describe_stage(
    stage: Stage, *, leave_out: Collection[str] = (), skip_unknown: bool = False
) -> dict[str, Any]:
    """Describe the settings of a stage's fit, without the task, which the data's hash covers.

    Args:
        stage: The stage.
        leave_out: Names of further settings that are left out.
        skip_unknown: As in `describe_each`.

    Raises:
        UnknownPartError: As in `describe_each`.
    """
    # A stage of several rounds is several stages of one.
    left_out = {"task", "path", "min_retained", "batch_size", "rounds", *leave_out}
    names = (
        f.name for f in fields(Stage) if f.name not in left_out
    )  # without the fields of ChainStage
    settings = describe_each(
        {name: getattr(stage, name) for name in names}, skip_unknown=skip_unknown
    )
    if sparsity := settings.get("sparsity"):
        sparsity.pop("verbose", None)
    return settings


def trainer_settings(trainer: Any, *, skip_unknown: bool = False) -> dict[str, Any]:
    """Describe the trainer's settings that all fits of a job share.

    A trainer that is made by a user's own function is described by that function's name.

    Raises:
        UnknownPartError: As in `describe_each`.
    """
    if not isinstance(trainer, partial):
        return describe_each({"_target_": trainer}, skip_unknown=skip_unknown)
    left_out = {*SINGLE_FIT_SETTINGS, *DISPLAY_SETTINGS}
    kept = {k: v for k, v in trainer.keywords.items() if k not in left_out}
    plugins = kept.get("plugins") or []
    plugins = plugins if isinstance(plugins, list | tuple) else [plugins]
    # How processes are started has no effect on a fit in one process.
    kept["plugins"] = [p for p in plugins if not isinstance(p, ClusterEnvironment)] or None
    kept = {"_target_": trainer.func, **{k: v for k, v in kept.items() if v is not None}}
    return describe_each(kept, skip_unknown=skip_unknown)


def digest(values: Any) -> str:
    """Hash plain data to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return package → version for the packages that results depend on."""
    packages = ("lightning", "transformers", "datasets", "torchmetrics")
    return {
        "python": platform.python_version(),
        "kd_prune": kd_prune.__version__,  # of this code, which need not be installed
        "torch": str(torch.__version__),  # with the build, which metadata may lack
        **{name: version(name) for name in packages},
    }
