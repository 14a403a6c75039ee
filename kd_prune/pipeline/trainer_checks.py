"""Checks of the trainer, before anything is trained."""

from __future__ import annotations

import logging
import os
import platform

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException

from kd_prune.errors import ConfigError
from kd_prune.lit.distributed import shards_parameters
from kd_prune.lit.progress import limited
from kd_prune.pipeline.job import Job

log = logging.getLogger(__name__)
NONZERO_SETTINGS = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "limit_val_batches",
    "val_check_interval",
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
)
"""Settings of Lightning's Trainer that must not be 0: nothing would be trained, or 0 a divisor."""


def checked_trainer(job: Job, limits: dict[str, object]) -> L.Trainer:
    """Make the trainer of a stage's fit and check its settings.

    Raises:
        ConfigError: The trainer cannot be made on this machine, or a setting must not be 0.
    """
    refusals = (ImportError, TypeError, ValueError, AttributeError, MisconfigurationException)
    try:
        trainer = job.trainer(logger=False, **limits)
    except refusals as error:
        reason = " ".join(str(error).split()).rstrip(".")
        for name, value in getattr(job.trainer, "keywords", {}).items():
            try:  # find the setting that is refused
                L.Trainer(logger=False, **{name: value})
            except refusals:
                hint = "take trainer.accelerator=auto" if name == "accelerator" else ""
                raise ConfigError(f"trainer.{name}", value, reason, hint) from error
        raise ConfigError("trainer", expected=reason) from error
    for name in NONZERO_SETTINGS:
        if getattr(trainer, name) == 0:
            raise ConfigError(f"trainer.{name}", 0, "expected a number above 0")
    check_processes(trainer)
    return trainer


def check_processes(trainer: L.Trainer) -> None:
    """Refuse several processes that nobody starts, or that share a model out between them.

    Raises:
        ConfigError: Their machines are not told apart, or the strategy shards parameters.
    """
    if shards_parameters(trainer):
        raise ConfigError(
            "trainer.strategy",
            type(trainer.strategy).__name__,
            "it shards parameters between processes, and a job's encoder has to fit one device",
            "take strategy=ddp, or SparsityCallback in a module of your own (docs/cluster.md)",
        )
    by_hand = type(getattr(trainer.strategy, "cluster_environment", None)) is LightningEnvironment
    if trainer.num_nodes > 1 and by_hand and not {"NODE_RANK", "GROUP_RANK"} & os.environ.keys():
        raise ConfigError(
            "trainer.num_nodes",
            trainer.num_nodes,
            "nothing says which machine this is",
            "start it with torchrun or srun, or set NODE_RANK, MASTER_ADDR and MASTER_PORT on each",
        )


def check_interval(trainer: L.Trainer, who: str, batches: int) -> None:
    """Refuse a validation interval that is longer than an epoch.

    Raises:
        ConfigError: An epoch has fewer batches.
    """
    interval, length = trainer.val_check_interval, limited(batches, trainer.limit_train_batches)
    across = trainer.check_val_every_n_epoch is None
    if isinstance(interval, int) and interval > length and not across:
        raise ConfigError(
            "trainer.val_check_interval",
            interval,
            f"an epoch of {who} has {length} batches",
            "lower it, or count across epochs with trainer.check_val_every_n_epoch=null",
        )


def warn_of_slow_precision(trainer: L.Trainer) -> None:
    """Warn of bfloat16 on a processor that can only emulate it."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if "bf16" in str(trainer.precision) and on_cpu and x86 and not fast:
        log.warning(
            "trainer.precision=%s: this processor has no instructions for bfloat16, so a product "
            "takes many times as long as in float32; leave the setting out (docs/cost.md)",
            trainer.precision,
        )
