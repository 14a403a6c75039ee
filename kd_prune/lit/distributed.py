"""Pruning in several processes: the first one's masks and clock count; FSDP1 is refused."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import Tensor

from kd_prune.errors import ConfigError

FSDP2 = "ModelParallelStrategy"
"""Strategy that shards parameters as DTensors."""
REFUSED = {"FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}
"""Strategies that keep parameters as pieces of one flat tensor, without the tensors' shapes."""


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized()


def broadcast_mask(mask: Tensor) -> None:
    """Overwrite the mask with the first process's."""
    dist.broadcast(mask.view(torch.uint8), 0)


def mask_sync() -> Callable[[Tensor], None] | None:
    """Return what makes a new mask the same in all processes; None in a single process."""
    return broadcast_mask if is_distributed() else None


def first_process_number(number: int, device: torch.device) -> int:
    """Return the first process's value of a number."""
    if not is_distributed():
        return number
    shared = torch.tensor(number, device=device)
    dist.broadcast(shared, 0)
    return int(shared)


def print_once(trainer: L.Trainer, text: object) -> None:
    """Print in the first process only."""
    if trainer.is_global_zero:
        print(text, flush=True)


def shards_parameters(trainer: L.Trainer) -> bool:
    """Return whether the strategy shards parameters between processes, in whatever way."""
    return type(trainer.strategy).__name__ in {*REFUSED, FSDP2}


def is_of_class_named(callback: object, *names: str) -> bool:
    """Return whether a callback's class, or a base of it, has one of these names.

    Lightning and pytorch_lightning have different classes of the same names.
    """
    return any(kind.__name__ in names for kind in type(callback).__mro__)


def refuse_later_average(trainer: L.Trainer, pruning: L.Callback) -> None:
    """Raise ConfigError if a moving average is listed after the callback that prunes.

    It would write its average, which is less sparse, into a checkpoint after pruned weights were
    zeroed there.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks[callbacks.index(pruning) :]:
        if is_of_class_named(callback, "WeightAveraging"):
            raise ConfigError(
                "trainer.callbacks",
                type(callback).__name__,
                "its checkpoints would be less sparse than the model",
                f"list it before {type(pruning).__name__}",
            )


def refuse_sharding(trainer: L.Trainer) -> None:
    """Raise ConfigError if a strategy shards parameters in a way that cannot be pruned.

    Sharded as DTensors (FSDP2) they can, but callbacks that average weights keep no DTensors.
    """
    strategy = type(trainer.strategy).__name__
    if strategy in REFUSED:
        raise ConfigError(
            "trainer.strategy",
            strategy,
            "it keeps parameters as pieces of one flat tensor, and a mask needs their shapes",
            "take ModelParallelStrategy, which is FSDP2, or strategy='ddp' (docs/cluster.md)",
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set in its __init__
        averages = is_of_class_named(callback, "WeightAveraging", "StochasticWeightAveraging")
        if averages and strategy == FSDP2:
            raise ConfigError(
                "trainer.callbacks",
                type(callback).__name__,
                "the average of sharded weights is not kept as sparse as they are",
                "leave it out, or take strategy='ddp'",
            )
