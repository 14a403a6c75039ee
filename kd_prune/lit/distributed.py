"""Pruning in several processes: the first one's masks and clock count; FSDP1 is refused."""

from __future__ import annotations

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import Tensor

from kd_prune.errors import ConfigError

REFUSED = {"FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}
"""Strategies that keep parameters as pieces of one flat tensor, without the tensors' shapes."""


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized()


def broadcast_mask(mask: Tensor) -> None:
    """Overwrite the mask with the first process's."""
    dist.broadcast(mask.view(torch.uint8), 0)


def first_process_number(number: int, device: torch.device) -> int:
    """Return the first process's value of a number."""
    if not is_distributed():
        return number
    shared = torch.tensor(number, device=device)
    dist.broadcast(shared, 0)
    return int(shared)


def restores_after_fit_start(trainer: L.Trainer) -> bool:
    """Return whether the fit resumes, and its state is loaded only after `on_fit_start`.

    A strategy that shards parameters loads them when they are sharded.
    """
    later: bool = trainer.strategy.restore_checkpoint_after_setup
    return later and trainer.ckpt_path is not None


def refuse_sharding(trainer: L.Trainer) -> None:
    """Raise ConfigError if the strategy shards parameters otherwise than as DTensors (FSDP2)."""
    strategy = type(trainer.strategy).__name__
    if strategy in REFUSED:
        raise ConfigError(
            "trainer.strategy",
            strategy,
            "it keeps parameters as pieces of one flat tensor, and a mask needs their shapes",
            "take ModelParallelStrategy, which is FSDP2, or strategy='ddp' (docs/cluster.md)",
        )
