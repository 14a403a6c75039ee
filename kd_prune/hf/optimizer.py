"""AdamW with a learning-rate schedule, as in common fine-tuning recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from kd_prune.errors import ConfigError

# The schedules of transformers that need nothing but the number of steps.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)


@dataclass(frozen=True, kw_only=True)
class AdamWWithSchedule:
    """AdamW and a learning-rate schedule for one fit.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay, not on biases and norms.
        betas: Decay rates of AdamW's two moments.
        eps: Added to AdamW's denominator.
        schedule: Course of the learning rate after the warm-up, as `transformers.get_scheduler`
            names it: one of `SCHEDULES`. `linear` falls to 0.
        warmup: Share of the steps during which the rate rises from 0.

    Raises:
        ConfigError: A value is out of its range.
    """

    lr: float = 3e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: str = "linear"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.lr < math.inf:
            raise ConfigError("lr", self.lr, "expected a finite number above 0")
        if not self.weight_decay >= 0:
            raise ConfigError("weight_decay", self.weight_decay, "expected a number from 0")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError("betas", list(self.betas), "expected two numbers in [0, 1)")
        if not self.eps > 0:
            raise ConfigError("eps", self.eps, "expected a number above 0")
        if self.schedule not in SCHEDULES:
            raise ConfigError("schedule", self.schedule, f"expected one of {', '.join(SCHEDULES)}")
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigError("warmup", self.warmup, "expected a fraction in [0, 1)")

    def __call__(self, model: nn.Module, total_steps: int) -> tuple[Optimizer, LRScheduler]:
        """Make the optimizer over `model`'s parameters and its schedule over `total_steps`."""
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
            # transformers' "constant" silently ignores the warm-up.
            "constant_with_warmup" if self.schedule == "constant" else self.schedule,
            optimizer,
            num_warmup_steps=round(self.warmup * total_steps),
            num_training_steps=total_steps,
        )
        return optimizer, scheduler
