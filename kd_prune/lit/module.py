"""DistillModule: a student that learns from a teacher, or from labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from kd_prune.distillation.activations import Batch, Forward
from kd_prune.distillation.objective import Objective

ConfigureOptimizer = Callable[[nn.Module, int], tuple[Optimizer, LRScheduler]]


class NonFiniteError(RuntimeError):
    """A loss or a weight became NaN or infinite; `found` says which and when, without a remedy."""

    def __init__(self, found: str, remedy: str = "try a lower learning rate") -> None:
        super().__init__(f"{found}; {remedy}")
        self.found = found


@dataclass(frozen=True)
class _Aside:
    """A model that is no child of the module: copies of the module, as for averages, share it."""

    model: nn.Module | None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Aside:
        return self


class DistillModule(L.LightningModule):
    """Trains `student` on `objective`; prunes nothing (that is SparsityCallback's part).

    The teacher is kept out of the module's parameters, its optimizer and its checkpoints; it runs
    in eval mode without gradients and only where a term asks for it.

    Batches are mappings of tensors, in training and in validation. They hold ``labels``, (batch,):
    metrics and `HardLabels` read them, and their number is that of the rows. Of the rest
    `Embeddings`, `HiddenStates` and `AttentionScores` read ``attention_mask``; everything else is
    up to `forward`.

    Args:
        student: The model that learns.
        objective: What it minimises.
        forward: ``(model, batch, requires) → Activations``: runs either model on a batch and gives
            at least the logits, (batch, outputs), and the kinds of activations in `requires`.
        optimizer: ``(model, total_steps) → (optimizer, learning-rate schedule)``.
        metrics: Metrics of predictions and labels.
        teacher: The model it learns from; needed if the objective reads one.
        validation: Names of the validation loaders; metrics of the first are logged as
            ``val/<metric>``, of others as ``val/<loader>/<metric>``.

    Raises:
        ValueError: The objective reads a teacher and there is none.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        objective: Objective,
        forward: Forward,
        optimizer: ConfigureOptimizer,
        metrics: MetricCollection,
        teacher: nn.Module | None = None,
        validation: tuple[str, ...] = ("validation",),
    ) -> None:
        super().__init__()
        if objective.needs_teacher and teacher is None:
            raise ValueError("the objective learns from a teacher, and none was given")
        self.student = student
        self.objective = objective
        self._forward = forward
        self._optimizer = optimizer
        self._teacher = _Aside(teacher if objective.needs_teacher else None)
        prefixes = ["val/", *(f"val/{name}/" for name in validation[1:])]
        self.metrics = nn.ModuleList([metrics.clone(prefix=prefix) for prefix in prefixes])

    def on_fit_start(self) -> None:
        """Put the teacher in eval mode on this module's device, in the trainer's precision."""
        if teacher := self._teacher.model:
            teacher = self.trainer.precision_plugin.convert_module(teacher)
            teacher.requires_grad_(False).eval().to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The objective on one batch; logs the total and every term, unweighted.

        Raises:
            NonFiniteError: A term is NaN or infinite; names the step and the term.
        """
        student = self._forward(self.student, batch, self.objective.requires)
        taught = None
        if teacher := self._teacher.model:
            with torch.no_grad():
                taught = self._forward(teacher, batch, self.objective.requires)
        total, losses = self.objective(student, taught, batch)
        if not math.isfinite(total.item()):
            self._stop_on_non_finite(losses)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch["labels"]))
        for name, loss in losses.items():
            self.log(f"train/{name}", loss.detach(), batch_size=len(batch["labels"]))
        return total

    def _stop_on_non_finite(self, losses: dict[str, Tensor]) -> None:
        broken = [f"{name}={loss.item()}" for name, loss in losses.items() if not loss.isfinite()]
        raise NonFiniteError(
            f"the loss is not finite at step {self.trainer.global_step + 1} "
            f"({', '.join(broken) or 'in the sum'})",
            "try a lower learning rate, or clip the gradients",
        )

    def on_validation_start(self) -> None:
        """Raise ValueError where there are more loaders than names."""
        loaders = self.trainer.num_val_batches
        if len(loaders) > len(self.metrics):
            raise ValueError(
                f"validation: {len(self.metrics)} names for {len(loaders)} validation loaders; "
                "name each, as validation=('validation', 'other')"
            )

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Gather predictions of the student."""
        logits = self._forward(self.student, batch, frozenset({"logits"})).logits.float()
        predictions = logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
        self._metrics()[dataloader_idx].update(predictions, batch["labels"])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation rows."""
        for metrics in self._metrics():
            self.log_dict(metrics.compute(), prog_bar=True, sync_dist=True)
            metrics.reset()

    def _metrics(self) -> list[MetricCollection]:
        return cast("list[MetricCollection]", list(self.metrics))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer with its schedule, stepped after every optimizer step.

        Raises:
            ValueError: Nothing says how many steps the run has.
        """
        total_steps = self.trainer.estimated_stepping_batches
        if math.isinf(total_steps):
            raise ValueError(
                f"trainer.max_steps={self.trainer.max_steps}: a learning-rate schedule needs the "
                "number of steps; set it, or max_epochs with a loader that has a length"
            )
        optimizer, scheduler = self._optimizer(self.student, int(total_steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save broken weights over good ones."""
        for name, parameter in self.student.named_parameters():
            if not parameter.isfinite().all():
                raise NonFiniteError(
                    f"{name} is not finite at step {self.trainer.global_step}, so not saved"
                )
