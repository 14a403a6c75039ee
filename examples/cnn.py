"""A small CNN on generated images, 90 % of its weights pruned while it trains.

python examples/cnn.py
"""

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kd_prune.lit import SparsityCallback


class Classifier(L.LightningModule):
    """Any module of your own; it contains no pruning code."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * 8 * 8, 64), nn.ReLU(), nn.Linear(64, 4),
        )  # fmt: skip

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def images(count: int, seed: int) -> TensorDataset:
    """Draw noisy 32 x 32 images; the label is the corner with a bright square, one of four."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(count, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        row, column = 16 * (label // 2) + 4, 16 * (label % 2) + 4
        picture[:, row : row + 8, column : column + 8] += 1.0
    return TensorDataset(pictures, labels)


def main(epochs: int = 4) -> float:
    """Train, prune, and return the accuracy on images that were not seen."""
    L.seed_everything(0, verbose=False)
    # From 0 to 90 % over the first 70 % of training, then recovery. Without a scope every
    # convolution and Linear layer except the last is pruned; a preview is printed.
    pruning = SparsityCallback(final=0.9, end=0.7)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=[pruning],
    )  # fmt: skip
    module = Classifier()
    validation = DataLoader(images(400, seed=1), batch_size=100)
    trainer.fit(module, DataLoader(images(800, seed=0), batch_size=32, shuffle=True), validation)
    # Pruned weights are zeros in plain parameters: save, load and deploy as usual.
    assert abs(pruning.pruner.sparsity - 0.9) < 1e-4
    return float(trainer.callback_metrics["accuracy"])


if __name__ == "__main__":
    print(f"accuracy at 90 % sparsity: {main():.3f}")
