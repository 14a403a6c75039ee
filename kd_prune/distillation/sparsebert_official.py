"""The distillation arithmetic of SparseBERT's reference code, for parity.

Source: github.com/DerronXu/SparseBERT, ``main_functions/task_distill_prune_simultaneously.py``.

Reproduced: means over padding and classes; masked keys count as score 0 on both sides; no T²;
regression against the labels, the teacher's output unused; sums over layers, all weights 1.

Not reproduced: the teacher with dropout on (``teacher.eval()`` is never called there); the head
``classifier(relu(pooled))``; BertAdam (no bias correction, gradients clipped tensor by tensor,
weight decay fixed at 0.01); the skipped last incomplete batch; padding everything to 128, which
`task.pad_to=128` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch.nn.functional as F
from torch import Tensor

from kd_prune.distillation.activations import Activations, Batch
from kd_prune.errors import ConfigError


def soft_cross_entropy(student: Activations, teacher: Activations, batch: Batch) -> Tensor:
    """Compute ``-mean_{b,c} softmax(teacher) · log_softmax(student)``; one output: label MSE."""
    if student.logits.shape[-1] == 1:
        labels = batch["labels"].to(student.logits.dtype)
        # A row without label counts as one that is predicted exactly.
        return F.mse_loss(
            student.logits.flatten(),
            labels.where(~labels.isnan(), student.logits.detach().flatten()),
        )
    return -(teacher.logits.softmax(-1) * student.logits.log_softmax(-1)).mean()


def hidden_states(student: Activations, teacher: Activations, batch: Batch) -> Tensor:
    """Compute ``Σ_{l=0..L} MSE(S_l, T_l)``, embeddings and padding included."""
    pairs = layers(student.hidden_states, teacher.hidden_states, "width", axis=-1)
    return reduce(add, (F.mse_loss(s, t) for s, t in pairs))


def attention_scores(student: Activations, teacher: Activations, batch: Batch) -> Tensor:
    """Compute ``Σ_{l=1..L} MSE(A_S, A_T)`` with padded queries; scores of padded keys are 0."""
    padded = ~batch["attention_mask"].bool()[:, None, None, :]
    pairs = layers(student.attention_scores, teacher.attention_scores, "number of heads", axis=1)
    return reduce(
        add,
        (F.mse_loss(s.masked_fill(padded, 0.0), t.masked_fill(padded, 0.0)) for s, t in pairs),
    )


def layers(
    student: Sequence[Tensor], teacher: Sequence[Tensor], size: str, axis: int
) -> list[tuple[Tensor, Tensor]]:
    """Pair the layers one by one: the reference code's student and teacher have the same shape.

    Raises:
        ConfigError: The models differ in depth, or in `size`, the length of `axis`.
    """
    for name, ours, theirs in (
        ("depth", len(student), len(teacher)),
        (size, student[0].shape[axis], teacher[0].shape[axis]),
    ):
        if ours != theirs:
            raise ConfigError(
                "weight",
                expected=f"the student's {name} is {ours}, the teacher's {theirs}, and the "
                "reference code compares models of the same shape",
                hint="set the weight to 0, or take distillation=sparsebert",
            )
    return list(zip(student, teacher, strict=True))
