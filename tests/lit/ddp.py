"""Run by test_ddp.py in several processes: every rank writes its masks and weights.

``ddp.py <folder> <nodes> <processes per node>``
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from kd_prune.lit import SparsityCallback


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 2))

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def unlike(weight: torch.Tensor) -> torch.Tensor:
    """Scores that differ between the processes, as do those of what each has seen."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    return torch.rand(weight.shape, generator=generator)


def main(out: Path, nodes: int, per_node: int) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(8, generator=generator), i % 2) for i in range(32)]
    pruning = SparsityCallback(0.9, criterion=unlike, updates=5)
    module, loader = Module(), DataLoader(rows, batch_size=4)
    trainer = L.Trainer(
        accelerator="cpu", devices=per_node, num_nodes=nodes, strategy="ddp", max_epochs=2,
        logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[pruning],
    )  # fmt: skip
    planned = SparsityCallback(0.9).preview(trainer, module, loader).total
    trainer.fit(module, loader)
    result = {"planned": planned, "steps": trainer.global_step}
    result |= {"masks": pruning.pruner.masks, "weights": dict(module.state_dict())}
    torch.save(result, out / f"rank{module.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
