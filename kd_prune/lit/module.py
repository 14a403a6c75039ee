"""DistillModule: trains a student on a teacher's activations, or on labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from kd_prune.distillation.activations import Activations, Batch, Forward, labels_of
from kd_prune.distillation.objective import Objective
from kd_prune.errors import ConfigError
from kd_prune.lit.progress import RunLength

ConfigureOptimizer = Callable[[nn.Module, int], tuple[Optimizer, LRScheduler] | Optimizer]
Predict = Callable[[Activations, Batch], tuple[Any, Any]]
LOGITS = frozenset({"logits"})


class NonFiniteError(RuntimeError):
    """A loss or a weight became NaN or infinite.

    Attributes:
        found: Which value and at which step, without a remedy.
    """

    def __init__(self, found: str, remedy: str = "try a lower learning rate") -> None:
        super().__init__(f"{found}; {remedy}")
        self.found = found


def predict_outputs(activations: Activations, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return predictions, (batch,), and the batch's ``labels`` as their targets.

    Predictions are the class of the largest logit, or the value itself where there is one output.
    """
    logits = activations.logits.float()
    predictions = logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1)
    return predictions, labels_of(batch)


@dataclass(frozen=True)
class _Unregistered:
    """Holds a model without making it a child module; deep copies share the model."""

    model: nn.Module | None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unregistered:
        return self


class DistillModule(L.LightningModule):
    """Trains `student` on `objective`; SparsityCallback prunes it, if there is one.

    The teacher is no part of the module's parameters, its optimizer or its checkpoints; it runs in
    eval mode without gradients, and only where a term needs it. Parameters of the objective
    (projections) train with the student and are part of checkpoints.

    Batches are mappings with tensors, in training and in validation; the first dimension of the
    first tensor is the number of rows. `HardLabels` and the default `predict` read ``labels``,
    `Embeddings`, `HiddenStates` and `AttentionScores` read ``attention_mask``; `forward` reads the
    model's inputs.

    Args:
        student: The model that learns.
        objective: The loss, a sum of terms.
        forward: ``(model, batch, requires) → Activations``: runs either model on a batch and
            returns at least the kinds of activations in `requires`.
        optimizer: ``(model, total_steps) → (optimizer, learning-rate schedule)``, or the optimizer
            alone. The model is the student, or, if the objective has parameters, an
            `nn.ModuleDict` of ``student`` and ``objective``.
        metrics: Metrics of predictions and targets; None: none.
        teacher: The model that the objective learns from; needed if a term reads one. Callbacks may
            use it too (`LayerReplacement`).
        predict: ``(activations, batch) → (predictions, targets)``, the arguments of the metrics'
            ``update``.
        validation: Names of the validation loaders; metrics of the first are logged as
            ``val/<metric>``, of others as ``val/<loader>/<metric>``.
        validation_loss: Whether to log the objective on the validation rows too, as ``val/loss``
            and ``val/loss/<term>`` (means over batches, weighted by rows).

    Raises:
        ConfigError: The objective reads a teacher and none is given, or the teacher, which is
            frozen, shares parameters with the student that are to train.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        objective: Objective,
        forward: Forward,
        optimizer: ConfigureOptimizer,
        metrics: MetricCollection | None = None,
        teacher: nn.Module | None = None,
        predict: Predict = predict_outputs,
        validation: tuple[str, ...] = ("validation",),
        validation_loss: bool = False,
    ) -> None:
        super().__init__()
        if objective.needs_teacher and teacher is None:
            raise ConfigError(
                "teacher",
                None,
                "the objective learns from a teacher, and none was given",
                "give one, or set the weights of the terms that read it to 0",
            )
        if teacher is not None:
            refuse_shared_parameters(student, teacher)
        self.student = student
        self.objective = objective
        self._forward = forward
        self._optimizer = optimizer
        self._predict = predict
        self._teacher = _Unregistered(teacher)
        self._prefixes = ["val/", *(f"val/{name}/" for name in validation[1:])]
        metrics = MetricCollection({}) if metrics is None else metrics
        self.metrics = nn.ModuleList([metrics.clone(prefix=prefix) for prefix in self._prefixes])
        self._validation_loss = validation_loss

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher, which is no child of this module."""
        return self._teacher.model

    def on_fit_start(self) -> None:
        """Prepare the teacher."""
        self._prepare_teacher()

    def _prepare_teacher(self) -> None:
        """Put the teacher in eval mode on this module's device, in the trainer's precision."""
        if self.teacher is not None and self.objective.needs_teacher:
            teacher = self.trainer.precision_plugin.convert_module(self.teacher)
            teacher.requires_grad_(False).eval().to(self.device)

    def _activations(self, model: nn.Module, batch: Batch, requires: frozenset[str]) -> Activations:
        """Run a model on a batch by the function of the user's.

        Raises:
            ConfigError: The batch is no mapping, or the function returns something else.
        """
        if not isinstance(batch, Mapping):
            kind = type(batch).__name__
            expected = "expected a mapping of tensors, as {'inputs': …, 'labels': …}"
            raise ConfigError("batch", kind, expected, "let the loader's collate_fn make it")
        outputs: Any = self._forward(model, batch, requires)
        if not isinstance(outputs, Activations):
            kind = type(outputs).__name__
            expected = "returned no Activations"
            raise ConfigError("forward", kind, expected, "return Activations(logits=…)")
        return outputs

    def _losses(self, batch: Batch, student: Activations) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the objective from the student's activations and, if needed, the teacher's."""
        teacher = None
        if self.teacher is not None and self.objective.needs_teacher:
            with torch.no_grad():
                teacher = self._activations(self.teacher, batch, self.objective.requires)
        total, losses = self.objective(student, teacher, batch)
        return total, losses

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the objective on one batch; log the total and every term, unweighted.

        Raises:
            NonFiniteError: A term is NaN or infinite; names the step and the term.
        """
        student = self._activations(self.student, batch, self.objective.requires)
        total, losses = self._losses(batch, student)
        if not math.isfinite(total.item()):
            self._refuse_non_finite(losses)
        rows = batch_size(batch)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=rows)
        for name, loss in losses.items():
            self.log(f"train/{name}", loss.detach(), batch_size=rows)
        return total

    def _refuse_non_finite(self, losses: dict[str, Tensor]) -> None:
        broken = [f"{name}={loss.item()}" for name, loss in losses.items() if not loss.isfinite()]
        raise NonFiniteError(
            f"the loss is not finite at step {self.trainer.global_step + 1} "
            f"({', '.join(broken) or 'in the sum'})",
            "try a lower learning rate, or clip the gradients",
        )

    def on_validation_start(self) -> None:
        """Refuse more loaders than names; prepare the teacher if its loss is asked for."""
        loaders = self.trainer.num_val_batches
        if len(loaders) > len(self.metrics):
            raise ConfigError(
                "validation",
                expected=f"{len(self.metrics)} names for {len(loaders)} validation loaders",
                hint="name each, as validation=('validation', 'other')",
            )
        if self._validation_loss:
            self._prepare_teacher()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update the metrics with the student's predictions; log the objective if asked for."""
        metrics = self._metrics()[dataloader_idx]
        requires = LOGITS if metrics else frozenset[str]()
        if self._validation_loss:
            requires |= self.objective.requires
        if not requires:
            return
        student = self._activations(self.student, batch, requires)
        if metrics:
            metrics.update(*self._predict(student, batch))
        if self._validation_loss:
            total, losses = self._losses(batch, student)
            name = f"{self._prefixes[dataloader_idx]}loss"
            values = {name: total, **{f"{name}/{term}": loss for term, loss in losses.items()}}
            self.log_dict(
                values, batch_size=batch_size(batch), sync_dist=True, add_dataloader_idx=False
            )

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation rows."""
        for metrics in self._metrics():
            if metrics:
                self.log_dict(metrics.compute(), prog_bar=True, sync_dist=True)
                metrics.reset()

    def _metrics(self) -> list[MetricCollection]:
        return cast("list[MetricCollection]", list(self.metrics))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and its schedule, which advances after every optimizer step.

        Raises:
            ConfigError: The number of optimizer steps is not known.
        """
        total_steps = RunLength.from_fit(self.trainer).steps
        if total_steps is None:
            raise ConfigError(
                "trainer.max_steps",
                self.trainer.max_steps,
                "optimizer(model, total_steps) needs the number of steps",
                "set it, or max_epochs with a loader that has a length",
            )
        model = self.student
        if self.objective.has_parameters:
            model = nn.ModuleDict({"student": self.student, "objective": self.objective})
        made = self._optimizer(model, total_steps)
        if isinstance(made, Optimizer):
            return made
        optimizer, scheduler = made
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite over good ones."""
        for model in (self.student, self.objective):
            for name, parameter in model.named_parameters():
                if not parameter.isfinite().all():
                    raise NonFiniteError(
                        f"{name} is not finite at step {self.trainer.global_step}, so not saved"
                    )


def refuse_shared_parameters(student: nn.Module, teacher: nn.Module) -> None:
    """Raise ConfigError where a parameter that is to train is the frozen teacher's too."""
    theirs = {id(parameter) for parameter in teacher.parameters()}
    trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
    if shared := [name for name, parameter in trained.items() if id(parameter) in theirs]:
        more = f" and {len(shared) - 1} more" if shared[1:] else ""
        raise ConfigError(
            "teacher",
            type(teacher).__name__,
            f"shares {shared[0]}{more} with the student, and the teacher is frozen",
            "build the student from copies (copy.deepcopy), or freeze what they share",
        )


def batch_size(batch: Batch) -> int:
    """Return the number of rows: the first dimension of the batch's first tensor.

    >>> batch_size({"input_ids": torch.zeros(3, 5), "labels": torch.zeros(3)})
    3
    """
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))
