"""2:4 sparsity: two of every four consecutive weights are pruned, the pattern GPUs compute faster.

python examples/two_four.py
"""

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import NM


class Classifier(L.LightningModule):
    """Any module; the widths of pruned layers are multiples of 4 (of 64 for the kernels)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4)
        )

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        rows, labels = batch
        return nn.functional.cross_entropy(self.network(rows), labels)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        rows, labels = batch
        self.log("accuracy", (self.network(rows).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def blobs(count: int, seed: int) -> TensorDataset:
    """Draw points around four centres; the label is the centre."""
    centres = torch.randn(4, 64, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return TensorDataset(centres[labels] + 2 * torch.randn(count, 64, generator=generator), labels)


def main(epochs: int = 4) -> tuple[float, nn.Module]:
    """Train, prune to 2:4, and return the accuracy and the network."""
    L.seed_everything(0, verbose=False)
    # NM(n=2, m=4) reaches exactly one half; the pattern forms gradually along the ramp.
    pruning = SparsityCallback(final=0.5, end=0.7, granularity=NM(n=2, m=4))
    trainer = L.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, callbacks=[pruning],
    )  # fmt: skip
    module = Classifier()
    validation = DataLoader(blobs(400, seed=1), batch_size=100)
    trainer.fit(module, DataLoader(blobs(1600, seed=0), batch_size=32, shuffle=True), validation)
    return float(trainer.callback_metrics["accuracy"]), module.network


def speed_up(network: nn.Sequential) -> None:
    """Run the network with sparse kernels, on a GPU of compute capability 8.0 or newer."""
    network.half().cuda()
    for layer in network[:-1]:
        if isinstance(layer, nn.Linear):
            # Compressed to half its size; weights that violate the pattern would be dropped.
            layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(layer.weight))
    with torch.inference_mode():
        print("sparse kernels:", network(torch.randn(64, 64).half().cuda()).shape)


if __name__ == "__main__":
    accuracy, network = main()
    print(f"accuracy at 2:4: {accuracy:.3f}")
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        speed_up(network)
