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
                raise ValueError(
                    f"terms.{name}.weight={term.weight}: expected a finite number ≥ 0 (0 = off)"
                )
            if unknown := set(term.requires) - KINDS:
                raise ValueError(
                    f"terms.{name}.requires={sorted(unknown)}: expected some of {sorted(KINDS)}"
                )
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        if not self.terms:
            shown = [f"terms.{name}.weight={term.weight:g}" for name, term in terms.items()]
            raise ValueError(
                f"{shown[0] if shown else 'terms.*'}: no term has a weight above 0, so there is "
                "nothing to learn from; give one such a weight"
            )
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
            ValueError: A model did not give what a term requires, or the two do not fit together;
                names the term.
        """
        if teacher is None:
            teacher = Activations(logits=student.logits.new_empty(0))
        self._check(student, teacher)
        losses = {}
        for name, term in self.terms.items():
            try:
                losses[name] = term(student, teacher, batch)
            except ValueError as error:
                own = hasattr(term, str(error).partition("=")[0])
                reason = str(error).replace("the term's weight", f"terms.{name}.weight")
                raise ValueError(f"terms.{name}{'.' if own else ': '}{reason}") from error
            shape = getattr(losses[name], "shape", losses[name])
            if shape != ():
                raise ValueError(f"terms.{name}: gives {shape}; expected a tensor of one number")
        total = torch.stack([self.terms[name].weight * loss for name, loss in losses.items()]).sum()
        return total, losses

    def _check(self, student: Activations, teacher: Activations) -> None:
        missing = {
            name: f"terms.{name} requires {kind}, which the {who} does not give"
            for name, term in self.terms.items()
            for kind in sorted(term.requires)
            for who, model in (("student", student), ("teacher", teacher))
            if len(getattr(model, kind)) == 0 and (who == "student" or term.of_teacher)
        }
        if missing:
            name, reason = next(iter(missing.items()))
            others = [other for other in self.terms if other not in missing]
            still = f" ({', '.join(others)} still work)" if others else ""
            raise ValueError(f"{reason}; set terms.{name}.weight to 0{still}")
