"""Pruning in several processes: the first one's masks and clock count; sharding is refused."""

from __future__ import annotations

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import Tensor

from kd_prune.errors import ConfigError

SHARDED = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}


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


def refuse_sharding(trainer: L.Trainer) -> None:
    """Raise ConfigError if the trainer's strategy shards parameters."""
    strategy = type(trainer.strategy).__name__
    if strategy in SHARDED:
        raise ConfigError(
            "trainer.strategy",
            strategy,
            "it shards parameters between processes, and a mask needs all of a tensor",
            "take strategy='ddp'",
        )
