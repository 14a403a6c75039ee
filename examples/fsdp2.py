"""Prune a model that is sharded over two processes (FSDP2) to 95 %.

    python examples/fsdp2.py

Lightning starts the second process. On machines with GPUs it takes two of them, else the CPU; with
``torchrun`` or ``srun``, and more of either, only the two numbers below change.
"""

from __future__ import annotations

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from kd_prune import SparsityCallback
from kd_prune.pruning import Global, Taylor

NODES, DEVICES = 1, 2


class Encoder(L.LightningModule):
    """A transformer that says which half of a sequence has the larger sum."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.embed = nn.Linear(1, width)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def configure_model(self) -> None:
        """Shard every layer over all processes: each is gathered where it is called."""
        mesh = self.device_mesh["data_parallel"]
        for module in [*self.encoder.layers, self.encoder, self.embed, self.head]:
            fully_shard(module, mesh=mesh)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the cross-entropy."""
        x, y = batch
        states = self.encoder(self.embed(x.unsqueeze(-1)))
        return nn.functional.cross_entropy(self.head(states.mean(1)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW; its state is sharded too."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> float:
    """Train and return the sparsity, counted over all processes."""
    torch.manual_seed(0)  # the same weights in all processes, of which each keeps its part
    x = torch.randn(512, 16)
    y = (x[:, :8].sum(1) > x[:, 8:].sum(1)).long()
    callback = SparsityCallback(0.95, criterion=Taylor(), allocation=Global(), updates=10)
    trainer = L.Trainer(
        accelerator="gpu" if torch.cuda.device_count() >= DEVICES else "cpu",
        num_nodes=NODES,
        devices=DEVICES,
        strategy=ModelParallelStrategy(NODES * DEVICES, 1),
        max_epochs=4,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,  # or ModelCheckpoint, as always
    )
    trainer.fit(Encoder(), DataLoader(TensorDataset(x, y), batch_size=16))
    return callback.pruner.sparsity


if __name__ == "__main__":
    main()
