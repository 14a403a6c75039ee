"""AdamW with a learning-rate schedule, as fine-tuning recipes have it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Makes the optimizer and the learning-rate schedule of one fit.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay, not on biases and norms.
        betas: AdamW's.
        eps: AdamW's.
        schedule: A name known to `transformers.get_scheduler`: `linear` (to 0), `cosine`,
            `constant_with_warmup`, …
        warmup: Share of the steps during which the rate rises from 0.
    """

    lr: float = 3e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: str = "linear"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr={self.lr}: expected a number above 0")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"optimizer.warmup={self.warmup}: expected a fraction in [0, 1)")

    def __call__(self, model: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """Optimizer over `model`'s parameters and its schedule over `total_steps`."""
        matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
        optimizer = AdamW(
            [
                {"params": matrices, "weight_decay": self.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
        )
        scheduler = get_scheduler(
            self.schedule,
            optimizer,
            num_warmup_steps=round(self.warmup * total_steps),
            num_training_steps=total_steps,
        )
        return optimizer, scheduler
