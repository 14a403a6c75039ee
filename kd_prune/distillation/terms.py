"""The terms of a distillation objective: a loss, its weight and what it needs of the models."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.distillation.layer_map import layer_pairs
from kd_prune.distillation.losses import (
    attention_score_mse,
    hard_label_loss,
    hidden_state_mse,
    soft_cross_entropy,
)


class Term(Protocol):
    """One named part of an objective."""

    @property
    def weight(self) -> float:
        """Coefficient of the term; at 0 it is not computed and requires nothing."""
        ...

    @property
    def requires(self) -> Collection[str]:
        """Kinds of activations it reads of both models: names of `Activations`' fields."""
        ...

    @property
    def of_teacher(self) -> bool:
        """Whether it reads the teacher at all."""
        ...

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """The unweighted loss, a scalar."""
        ...


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """The teacher's output distribution; for one output (regression) its value, squared error."""

    weight: float = 1.0
    temperature: float = 1.0
    requires = frozenset({"logits"})
    of_teacher = True

    def __post_init__(self) -> None:
        """Check the temperature."""
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: expected a finite number above 0")

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """See `soft_cross_entropy`."""
        s, t = student.logits, teacher.logits
        if s.shape[-1] != t.shape[-1]:
            raise ValueError(
                f"the student has {s.shape[-1]} outputs, the teacher {t.shape[-1]}; take a teacher "
                "of the same task, or set the term's weight to 0"
            )
        if s.shape[-1] == 1:
            return hard_label_loss(s, t.squeeze(-1))
        return soft_cross_entropy(s, t, self.temperature)


@dataclass(frozen=True, kw_only=True)
class HardLabels:
    """The data set's own labels."""

    weight: float = 1.0
    requires = frozenset({"logits"})
    of_teacher = False

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """See `hard_label_loss`."""
        return hard_label_loss(student.logits, batch["labels"])


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The embedding output."""

    weight: float = 1.0
    requires = frozenset({"hidden_states"})
    of_teacher = True

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """See `hidden_state_mse`."""
        same_width(student.hidden_states[0], teacher.hidden_states[0])
        return hidden_state_mse(
            student.hidden_states[0], teacher.hidden_states[0], batch["attention_mask"]
        )


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """Every layer's output, summed over layers. A layer map may name layer 0, the embeddings."""

    weight: float = 1.0
    layer_map: Mapping[int, int] | None = None
    requires = frozenset({"hidden_states"})
    of_teacher = True

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """See `hidden_state_mse`."""
        s, t = student.hidden_states, teacher.hidden_states
        same_width(s[0], t[0])
        pairs = layer_pairs(len(s) - 1, len(t) - 1, self.layer_map)
        return torch.stack(
            [hidden_state_mse(s[i], t[j], batch["attention_mask"]) for i, j in pairs]
        ).sum()


@dataclass(frozen=True, kw_only=True)
class AttentionScores:
    """Every layer's attention scores before the softmax, summed over layers."""

    weight: float = 1.0
    layer_map: Mapping[int, int] | None = None
    requires = frozenset({"attention_scores"})
    of_teacher = True

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """See `attention_score_mse`."""
        s, t = student.attention_scores, teacher.attention_scores
        if s[0].shape[1] != t[0].shape[1]:
            raise ValueError(
                f"the student has {s[0].shape[1]} heads, the teacher {t[0].shape[1]}; "
                "set the term's weight to 0"
            )
        pairs = layer_pairs(len(s), len(t), self.layer_map)
        if any(i == 0 or j == 0 for i, j in pairs):
            raise ValueError(
                f"layer_map={self.layer_map}: 0, the embeddings, has no attention; "
                "name layers from 1 on"
            )
        return torch.stack(
            [attention_score_mse(s[i - 1], t[j - 1], batch["attention_mask"]) for i, j in pairs]
        ).sum()


@dataclass(frozen=True, kw_only=True)
class Custom:
    """Your own loss, ``function(student, teacher, batch) → scalar``.

    Args:
        function: Reads two `Activations` and the batch.
        requires: What it reads: `logits`, `hidden_states`, `attention_scores`.
        of_teacher: Whether it reads the teacher.
        weight: Its coefficient.
    """

    function: Callable[[Activations, Activations, Batch], Tensor]
    requires: Collection[str] = frozenset({"logits"})
    of_teacher: bool = True
    weight: float = 1.0

    def __call__(self, student: Activations, teacher: Activations, batch: Batch) -> Tensor:
        """Call the function."""
        return self.function(student, teacher, batch)


def same_width(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both have the same number of features."""
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the student is {student.shape[-1]} wide, the teacher {teacher.shape[-1]}; "
            "set the term's weight to 0"
        )
