"""A toy student, teacher and data set: all parts of a fit, only small."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from kd_prune.distillation import HardLabels, Objective, SoftTargets
from kd_prune.distillation.activations import Activations
from kd_prune.hf import LengthGroupedBatches, ResumableLoader
from kd_prune.lit import DistillModule
from kd_prune.metrics import metric_collection
from kd_prune.pruning import Scope

ROWS, BATCH, WIDTH = 52, 8, 16
STEPS_PER_EPOCH = 7  # the last batch is short
SCOPE = Scope(include=["student.encoder.*.weight"])


class Toy(nn.Module):
    """Embedding, two encoder layers with norms, dropout, head; `poison` makes its output NaN."""

    def __init__(self, dropout: float = 0.0, seed: int = 0, width: int = WIDTH) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embeddings = nn.Embedding(20, width)
            self.encoder = nn.Sequential(
                nn.Linear(width, 32), nn.LayerNorm(32), nn.Dropout(dropout), nn.Linear(32, width)
            )
            self.head = nn.Linear(width, 3)
        self.calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.encoder(self.embeddings(ids)).mean(1))


def forward(model: nn.Module, batch: dict[str, Tensor], requires: frozenset[str]) -> Activations:
    return Activations(logits=model(batch["input_ids"]))


def forward_with_hidden_states(
    model: nn.Module, batch: dict[str, Tensor], requires: frozenset[str]
) -> Activations:
    embedded = model.embeddings(batch["input_ids"])
    encoded = model.encoder(embedded)
    return Activations(logits=model.head(encoded.mean(1)), hidden_states=(embedded, encoded))


def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"ids": rng.integers(0, 20, size=5).tolist(), "label": i % 3} for i in range(ROWS)]


def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = torch.tensor([row["ids"] for row in batch])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([row["label"] for row in batch]),
    }


def train_loader() -> ResumableLoader:
    batches = LengthGroupedBatches(np.full(ROWS, 5), batch_size=BATCH, seed=3)
    return ResumableLoader(
        rows(), batch_sampler=batches, collate_fn=collate, generator=torch.Generator()
    )


def validation_loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        rows()[:16], batch_size=8, collate_fn=collate, generator=torch.Generator()
    )


def adamw(model: nn.Module, total_steps: int) -> tuple[AdamW, LambdaLR]:
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    return optimizer, LambdaLR(optimizer, lambda step: 1 - 0.5 * step / 50)


def sgd(model: nn.Module, total_steps: int) -> tuple[torch.optim.SGD, LambdaLR]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return optimizer, LambdaLR(optimizer, lambda step: 1.0)


def make_module(
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    terms: dict[str, Any] | Objective | None = None,
    optimizer: Any = adamw,
    dropout: float = 0.0,
    **settings: Any,
) -> DistillModule:
    if terms is None:
        terms = {"soft_targets": SoftTargets(), "hard_labels": HardLabels()}
    return DistillModule(
        student or Toy(dropout),
        teacher=teacher or Toy(seed=7),
        objective=terms if isinstance(terms, Objective) else Objective(terms),
        **{
            "forward": forward,
            "optimizer": optimizer,
            "metrics": metric_collection(["accuracy"], 3),
        }
        | settings,
    )


def make_trainer(out: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    defaults = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    return L.Trainer(
        accelerator=os.environ["KD_PRUNE_TEST_ACCELERATOR"],
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=any_checkpoint(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=out,
        **(defaults | settings),
    )


def any_checkpoint(callbacks: tuple[L.Callback, ...]) -> bool:
    return any(isinstance(callback, L.callbacks.Checkpoint) for callback in callbacks)


def fit(trainer: L.Trainer, module: L.LightningModule, **settings: Any) -> None:
    trainer.fit(module, train_loader(), validation_loader(), **settings)
