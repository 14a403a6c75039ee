"""Terms of a distillation objective: a loss, its weight and the activations it requires."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kd_prune.distillation.activations import Activations, Batch, labels_of
from kd_prune.distillation.layer_map import layer_pairs
from kd_prune.distillation.losses import attention_score_mse, hard_label_loss, soft_cross_entropy
from kd_prune.errors import ConfigError

HardLabelLoss = Callable[[Activations, Batch], Tensor]


class Term(Protocol):
    """One named loss of an objective.

    A term with parameters of its own is an `nn.Module` with these attributes and a ``forward``:
    the objective registers it, so its parameters train with the student and resume with it, are
    never pruned, and are not saved with the student.
    """

    @property
    def weight(self) -> float:
        """Coefficient of the term; at 0 the term is not computed and requires nothing."""
        ...

    @property
    def requires(self) -> Collection[str]:
        """Kinds of activations that the term reads: names of `Activations`' fields."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether the term reads the teacher's activations."""
        ...

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the unweighted loss, a scalar."""
        ...


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """Divergence from the teacher's output distribution (`soft_cross_entropy`).

    A model with one output (regression) learns the teacher's value by squared error.

    Args:
        weight: Coefficient of the term.
        temperature: Divisor of both models' logits, above 0.
        reduction: ``batchmean``, or ``mean``, which divides by the number of classes too.

    Raises:
        ConfigError: The temperature is not above 0, or the reduction is unknown.
    """

    weight: float = 1.0
    temperature: float = 1.0
    reduction: str = "batchmean"
    requires = frozenset({"logits"})
    needs_teacher = True

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError("temperature", self.temperature, "expected a finite number above 0")
        if self.reduction not in ("batchmean", "mean"):
            raise ConfigError("reduction", self.reduction, "expected batchmean or mean")

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the loss, a scalar."""
        s, t = student.logits, teacher.logits
        if s.shape[-1] != t.shape[-1]:
            raise ConfigError(
                "weight",
                self.weight,
                f"the student has {s.shape[-1]} outputs, the teacher {t.shape[-1]}",
                "take a teacher of the same task, or set the weight to 0",
            )
        if s.shape[-1] == 1:
            return hard_label_loss(s, t.squeeze(-1))
        return soft_cross_entropy(s, t, self.temperature, self.reduction)


def label_loss(student: Activations, batch: Batch) -> Tensor:
    """Compute `hard_label_loss` of the logits and the batch's ``labels``."""
    return hard_label_loss(student.logits, labels_of(batch))


@dataclass(frozen=True, kw_only=True)
class HardLabels:
    """Loss against the data set's own labels.

    Args:
        weight: Coefficient of the term.
        loss: ``(student, batch) → scalar``; None: the task's loss
            (`Objective.with_hard_label_loss`), else `label_loss`.
    """

    weight: float = 1.0
    loss: HardLabelLoss | None = None
    requires = frozenset({"logits"})
    needs_teacher = False

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the loss, a scalar."""
        return (self.loss or label_loss)(student, batch)


@dataclass(frozen=True, kw_only=True)
class AttentionScores:
    """Squared error of every layer's attention scores before the softmax, summed over layers.

    See `attention_score_mse`. Student and teacher must have the same number of heads; their widths
    may differ.

    Args:
        weight: Coefficient of the term.
        layer_map: Student layer → teacher layer, from 1 on; None spreads the layers evenly.
    """

    weight: float = 1.0
    layer_map: Mapping[int, int] | None = None
    requires = frozenset({"attention_scores"})
    needs_teacher = True

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Compute the loss, a scalar."""
        s, t = student.attention_scores, teacher.attention_scores
        if s[0].shape[1] != t[0].shape[1]:
            raise ConfigError(
                "weight",
                self.weight,
                f"the student has {s[0].shape[1]} heads, the teacher {t[0].shape[1]}, so their "
                "attention scores cannot be compared",
                "set the weight to 0",
            )
        pairs = layer_pairs(len(s), len(t), self.layer_map)
        if any(i == 0 or j == 0 for i, j in pairs):
            raise ConfigError(
                "layer_map",
                self.layer_map,
                "0, the embeddings, has no attention",
                "name layers from 1 on",
            )
        return torch.stack(
            [attention_score_mse(s[i - 1], t[j - 1], batch["attention_mask"]) for i, j in pairs]
        ).sum()


@dataclass(frozen=True, kw_only=True)
class Custom:
    """A loss given as a function, ``function(student, teacher, batch) → scalar``.

    Args:
        function: Reads two `Activations` and the batch.
        requires: Kinds that it reads: names of `Activations`' fields.
        needs_teacher: Whether it reads the teacher's activations.
        weight: Coefficient of the term.
    """

    function: Callable[[Activations, Activations, Batch], Tensor]
    requires: Collection[str] = frozenset({"logits"})
    needs_teacher: bool = True
    weight: float = 1.0

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Call the function."""
        return self.function(student, teacher, batch)
