"""Run by test_fsdp2.py in several processes: one fit of a sharded module, and what it ends with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from kd_prune.lit import SparsityCallback

WIDTHS = (8, 13, 7, 2)  # no number of processes divides all of them


class Module(L.LightningModule):
    """Each process sees the same rows, so that its gradient is that of a single process."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(a, b) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False)]
        self.network = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    def configure_model(self) -> None:
        if self._device_mesh is None:
            return  # one process
        mesh = self.device_mesh["data_parallel"]
        for layer in self.network:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.network, mesh=mesh)

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(
        [(torch.randn(8, generator=generator), i % 2) for i in range(32)], batch_size=4
    )


def fit(out: Path, processes: int, **settings: Any) -> tuple[Module, SparsityCallback]:
    strategy = "auto"
    if processes > 1:
        strategy = ModelParallelStrategy(processes, 1)
    module, pruning = Module(), SparsityCallback(updates=5, **settings)
    L.Trainer(
        accelerator="cpu", devices=processes, strategy=strategy, max_epochs=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[pruning], use_distributed_sampler=False,
    ).fit(module, loader())  # fmt: skip
    return module, pruning


if __name__ == "__main__":
    module, pruning = fit(Path(sys.argv[1]), int(sys.argv[2]), final=0.9)
    from kd_prune.pruning.sharding import gather

    res = {
        "masks": {k: gather(v) for k, v in pruning.pruner.masks.items()},
        "w": {k: gather(v) for k, v in module.state_dict().items()},
    }
    torch.save(res, Path(sys.argv[1]) / f"r{module.global_rank}of{sys.argv[2]}.pt")
