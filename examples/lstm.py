"""An LSTM that adds up numbers, with its own choice of what is pruned and how.

python examples/lstm.py
"""

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kd_prune.lit import SparsityCallback
from kd_prune.pruning import Scope, linear


class Adder(L.LightningModule):
    """Reads (value, mark) pairs and returns the sum of the marked values."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 64, batch_first=True)
        self.head = nn.Linear(64, 1)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(pairs)
        return self.head(states[:, -1]).squeeze(-1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        pairs, sums = batch
        return nn.functional.mse_loss(self(pairs), sums)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        pairs, sums = batch
        self.log("error", nn.functional.mse_loss(self(pairs), sums))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def sums(count: int, seed: int, length: int = 10) -> TensorDataset:
    """Draw random values, each marked or not; the target is the sum of the marked values."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, length, generator=generator)
    marked = torch.rand(count, length, generator=generator).lt(0.3).float()
    return TensorDataset(torch.stack([values, marked], dim=-1), (values * marked).sum(-1))


def main(epochs: int = 8) -> float:
    """Train, prune, and return the mean squared error; predicting the mean gives about 0.75."""
    L.seed_everything(0, verbose=False)
    pruning = SparsityCallback(
        final=0.8,  # prunes four of five weights
        scope=Scope(include=["lstm.weight_hh_*"]),  # the recurrent weights only, by name
        begin=0.1,  # dense for the first tenth of training
        end=0.6,  # at 80 % from here on
        ramp=linear,  # a straight ramp between the two
        updates=20,  # in twenty steps
    )
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, callbacks=[pruning],
    )  # fmt: skip
    module = Adder()
    validation = DataLoader(sums(500, seed=1), batch_size=500)
    trainer.fit(module, DataLoader(sums(3200, seed=0), batch_size=32, shuffle=True), validation)
    weight = module.lstm.weight_hh_l0  # still a plain parameter, under its own name
    assert int((weight == 0).sum()) == round(0.8 * weight.numel())
    return float(trainer.callback_metrics["error"])


if __name__ == "__main__":
    print(f"mean squared error at 80 % sparsity: {main():.4f}")
