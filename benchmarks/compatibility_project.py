"""Projects for bench-compatibility: what a case is, and data for its networks.

Everything is small and random; nothing is downloaded. A case is one function that returns a
`Project`. Cases of a package that is not installed are skipped.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_prune import Scope

Batch = dict[str, Tensor]
WORDS, LENGTH, ROWS, STEPS = 101, 16, 8, 24


@dataclass
class Project:
    """A LightningModule, its batches, and what else its Trainer is given."""

    module: L.LightningModule
    batches: list[Batch]
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A named way to make a project."""

    group: str
    name: str
    make: Callable[[], Project]
    needs: str | None = None  # a package
    scope: Scope | None = None  # what may be pruned, where that has to be said

    @property
    def installed(self) -> bool:
        """Whether the package that the case needs is there."""
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


class Supervised(L.LightningModule):
    """A network, a loss of its outputs, and an optimizer."""

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.loss = network, loss
        self.optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))

    def forward(self, x: Tensor) -> Any:
        """Return the network's outputs."""
        return self.network(x)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss."""
        return self.loss(self.network, batch)

    def configure_optimizers(self) -> Any:
        """Return the optimizer."""
        return self.optimizer(self.network.parameters())


def vectors(width: int = 16, classes: int = 5) -> list[Batch]:
    """Make batches of vectors and classes."""
    return [
        {"x": torch.randn(ROWS, width), "y": torch.randint(classes, (ROWS,))} for _ in range(STEPS)
    ]


def images(channels: int = 3, size: int = 32, classes: int = 5) -> list[Batch]:
    """Make batches of images and classes."""
    return [
        {"x": torch.randn(ROWS, channels, size, size), "y": torch.randint(classes, (ROWS,))}
        for _ in range(STEPS)
    ]


def texts() -> list[Batch]:
    """Make batches of token ids."""
    return [{"x": torch.randint(5, WORDS, (ROWS, LENGTH))} for _ in range(STEPS)]


def classify(network: nn.Module, batch: Batch) -> Tensor:
    """Return the cross entropy of the network's logits."""
    logits = network(batch["x"])
    return F.cross_entropy(getattr(logits, "logits", logits), batch["y"])


def mlp(*middle: nn.Module) -> nn.Module:
    """Make a small network for `vectors`."""
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), *middle, nn.Linear(32, 32), nn.ReLU(),
                         nn.Linear(32, 5))  # fmt: skip


def supervised(network: Callable[[], nn.Module], batches: Callable[[], list[Batch]]) -> Project:
    """Make a classifier's project."""
    return Project(Supervised(network(), classify), batches())


def labelled_texts() -> list[Batch]:
    """Make batches of token ids and classes."""
    return [batch | {"y": torch.randint(5, (ROWS,))} for batch in texts()]
