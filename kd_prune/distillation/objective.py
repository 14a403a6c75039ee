"""The objective: a weighted sum of named terms over student, teacher and batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from kd_prune.distillation.activations import KINDS, Activations, Batch
from kd_prune.distillation.terms import Term


class Objective:
    """``Σ weight · term(student, teacher, batch)`` over named terms.

    Terms of weight 0 are left out: they are not computed and require nothing.

    Args:
        terms: Name → `Term`.

    Raises:
        ValueError: A weight is negative or not finite, no term is left, or a term requires an
            unknown kind of activation.

    >>> from kd_prune.distillation.terms import AttentionScores, SoftTargets
    >>> terms = {"soft_targets": SoftTargets(), "attention": AttentionScores(weight=0.0)}
    >>> sorted(Objective(terms).requires)
    ['logits']
    """

    def __init__(self, terms: Mapping[str, Term]) -> None:
        for name, term in terms.items():
            if not (math.isfinite(term.weight) and term.weight >= 0):
                raise ValueError(f"{name}.weight={term.weight}: expected a finite number ≥ 0")
            if unknown := set(term.requires) - KINDS:
                raise ValueError(
                    f"{name}.requires={sorted(unknown)}: expected some of {sorted(KINDS)}"
                )
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        if not self.terms:
            raise ValueError("the objective has no term of weight above 0: nothing to learn from")
        self.requires = frozenset[str]({"logits"}).union(*(t.requires for t in self.terms.values()))
        self.needs_teacher = any(term.of_teacher for term in self.terms.values())

    def __call__(
        self, student: Activations, teacher: Activations | None, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and each unweighted term.

        Args:
            student: The student's activations.
            teacher: The teacher's; may be None where no term reads them.
            batch: The batch, with ``attention_mask`` and, for hard labels, ``labels``.

        Raises:
            ValueError: A model did not give what a term requires, or the two do not fit together.
        """
        if teacher is None:
            teacher = Activations(logits=student.logits.new_empty(0))
        for name, term in self.terms.items():
            for kind in term.requires:
                if len(getattr(student, kind)) == 0:
                    self._refuse(name, kind, "student")
                if term.of_teacher and len(getattr(teacher, kind)) == 0:
                    self._refuse(name, kind, "teacher")
        losses = {name: term(student, teacher, batch) for name, term in self.terms.items()}
        total = torch.stack([self.terms[name].weight * loss for name, loss in losses.items()]).sum()
        return total, losses

    def _refuse(self, name: str, kind: str, who: str) -> None:
        others = [other for other, term in self.terms.items() if kind not in term.requires]
        raise ValueError(
            f"{name} requires {kind}, which the {who} does not give; set {name}.weight to 0 "
            f"({', '.join(others or ['soft_targets', 'hard_labels'])} still work)"
        )
