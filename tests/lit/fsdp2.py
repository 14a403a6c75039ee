"""Run by test_fsdp2.py, in one process or several: fits of a sharded module, and their ends.

``fsdp2.py <folder> <name> <what>``: `what` is ``whole`` (an undisturbed fit, which saves a gathered
and a distributed checkpoint half way) or a checkpoint to resume. Every process writes its end.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Global, SparsityReport, Taylor
from kd_prune.pruning.sharding import gather

WIDTHS = (8, 13, 2, 9, 2)  # neither two nor three processes divide all of them
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


class Module(L.LightningModule):
    """Only the first process's gradients count, so that their sum is that of a single process."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [layer for a, b in pairwise(WIDTHS) for layer in (nn.Linear(a, b), nn.Tanh())]
        self.network = nn.Sequential(*layers[:-1])

    def configure_model(self) -> None:
        if self._device_mesh is None:
            return  # not sharded
        mesh = self.device_mesh["data_parallel"]
        for layer in [*self.network[::2], self.network]:
            fully_shard(layer, mesh=mesh)

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        return loss if self.global_rank == 0 else 0.0 * loss

    def on_after_backward(self) -> None:
        for parameter in self.parameters():
            parameter.grad.mul_(PROCESSES)  # of two processes, g / 2 · 2 is g in floats too

    def validation_step(self, batch, index):
        self.network(batch[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class SaveHalfWay(L.Callback):
    """Saves the fit after its second epoch, in a file and, if it is sharded, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            for distributed in (False, True)[: 1 + (PROCESSES > 1)]:
                trainer.strategy._save_distributed_checkpoint = distributed
                name = "distributed" if distributed else "gathered"
                trainer.save_checkpoint(self.folder / f"{name}.ckpt", weights_only=False)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(8, generator=generator), i % 2) for i in range(32)]
    return DataLoader(rows, batch_size=4)


def main(folder: Path, name: str, what: str) -> None:
    module = Module()
    pruning = SparsityCallback(0.9, criterion=Taylor(), allocation=Global(), updates=10)
    saving = [SaveHalfWay(folder)] if what == "whole" else []
    sharded = PROCESSES > 1 or Path(what).is_dir()  # one process too can take a folder
    trainer = L.Trainer(
        accelerator="cpu", devices=os.environ.get("LOCAL_WORLD_SIZE", 1), max_epochs=4,
        strategy=ModelParallelStrategy(PROCESSES, 1) if sharded else "auto",
        num_nodes=PROCESSES // int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[pruning, *saving], use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(
        module, loader(), loader(), ckpt_path=None if what == "whole" else what, weights_only=True
    )
    with torch.no_grad():
        found = {
            "masks": {name: gather(mask) for name, mask in pruning.pruner.masks.items()},
            "weights": {name: gather(weight) for name, weight in module.named_parameters()},
            "report": str(SparsityReport.count(module, pruning.pruner.parameters)),
            "pruned": pruning.pruned,
        }
    torch.save(found, folder / f"{name}-{module.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
