"""Objective: a weighted sum of named terms over student, teacher and batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kd_prune.distillation.activations import KINDS, Activations, Batch
from kd_prune.distillation.terms import HardLabelLoss, HardLabels, Term
from kd_prune.errors import UNSET, ConfigError, key_prefix


class Objective(nn.Module):
    """``Σ weight · term(student, teacher, batch)`` over named terms.

    Terms of weight 0 are left out: they are not computed and require nothing. A term that is an
    `nn.Module` is registered: its parameters train with the student and are in its checkpoints.

    Args:
        terms: Name → `Term`.

    Attributes:
        terms: Name → term, those of weight 0 left out.
        requires: Kinds of activations that the terms read.
        needs_teacher: Whether any term reads the teacher's activations.
        never_pruned: True: no scope selects the objective's parameters.

    Raises:
        ConfigError: A weight is negative or not finite, no term is left, or a term requires an
            unknown kind of activation.

    >>> from kd_prune.distillation.terms import AttentionScores, SoftTargets
    >>> terms = {"soft_targets": SoftTargets(), "attention": AttentionScores(weight=0.0)}
    >>> sorted(Objective(terms).requires)
    ['logits']
    """

    never_pruned = True

    def __init__(self, terms: Mapping[str, Term]) -> None:
        super().__init__()
        for name, term in terms.items():
            if not all(hasattr(term, part) for part in ("weight", "requires", "needs_teacher")):
                raise ConfigError(
                    f"terms.{name}",
                    expected="a term needs weight, requires and needs_teacher",
                    hint="a function of yours goes into Custom(function=…, requires=[…])",
                )
            if not (math.isfinite(term.weight) and term.weight >= 0):
                raise ConfigError(
                    f"terms.{name}.weight", term.weight, "expected a finite number ≥ 0 (0 = off)"
                )
            if unknown := set(term.requires) - KINDS:
                raise ConfigError(
                    f"terms.{name}.requires", sorted(unknown), f"expected some of {sorted(KINDS)}"
                )
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        if not self.terms:
            name, value = ("*", UNSET)
            if terms:
                name, value = next((f"{n}.weight", t.weight) for n, t in terms.items())
            raise ConfigError(
                f"terms.{name}",
                value,
                "no term has a weight above 0, so there is nothing to learn from",
                "give one term a weight above 0",
            )
        self.requires = frozenset[str]().union(*(term.requires for term in self.terms.values()))
        self.needs_teacher = any(term.needs_teacher for term in self.terms.values())
        self.term_modules = nn.ModuleDict()
        for name, term in self.terms.items():
            if isinstance(term, nn.Module):
                try:
                    self.term_modules[name] = term
                except KeyError as error:
                    raise ConfigError(
                        f"terms.{name}", expected="no valid module name", hint="rename the term"
                    ) from error

    @property
    def has_parameters(self) -> bool:
        """Whether any term has parameters."""
        return next(self.parameters(), None) is not None

    def with_hard_label_loss(self, loss: HardLabelLoss) -> Objective:
        """Return the same objective with `loss` in every `HardLabels` term that has no loss.

        Args:
            loss: ``(student, batch) → scalar``.
        """
        terms = {
            name: replace(term, loss=loss)
            if isinstance(term, HardLabels) and term.loss is None
            else term
            for name, term in self.terms.items()
        }
        return Objective(terms)

    def match_widths(self, student_width: int, teacher_width: int) -> None:
        """Let every term that can make a projection do so, if the widths differ.

        Call it before the optimizer is made. Projections that were given are kept.

        Args:
            student_width: Features of the student's hidden states.
            teacher_width: Features of the teacher's hidden states.
        """
        for term in self.terms.values():
            if hasattr(term, "match_widths"):
                term.match_widths(student_width, teacher_width)

    def forward(
        self, student: Activations, teacher: Activations | None, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the total and every unweighted term.

        Args:
            student: The student's activations.
            teacher: The teacher's activations; may be None where no term reads them.
            batch: The batch, with ``attention_mask`` and, for hard labels, ``labels``.

        Raises:
            ConfigError: A model does not give the activations that a term requires, or student
                and teacher do not fit together; the key names the term.
        """
        teacher = Activations() if teacher is None else teacher
        self._check_activations(student, teacher)
        losses = {
            name: self._term_loss(name, term, student, teacher, batch)
            for name, term in self.terms.items()
        }
        total = torch.stack([self.terms[name].weight * loss for name, loss in losses.items()]).sum()
        return total, losses

    def _term_loss(
        self, name: str, term: Term, student: Activations, teacher: Activations, batch: Batch
    ) -> Tensor:
        with key_prefix(f"terms.{name}"):
            try:
                loss = term(student, teacher, batch)
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError("", expected=str(error)) from error
            shape = getattr(loss, "shape", loss)
            if shape != ():
                raise ConfigError("", expected=f"gives {shape}; expected a tensor of one number")
        return loss

    def _check_activations(self, student: Activations, teacher: Activations) -> None:
        missing = {
            name: f"requires {kind}, which the {role} does not give"
            for name, term in self.terms.items()
            for kind in sorted(term.requires)
            for role, model in (("student", student), ("teacher", teacher))
            if _is_missing(getattr(model, kind)) and (role == "student" or term.needs_teacher)
        }
        if missing:
            name, reason = next(iter(missing.items()))
            others = ", ".join(other for other in self.terms if other not in missing)
            hint = f"set its weight to 0{f' ({others} still work)' if others else ''}"
            raise ConfigError(f"terms.{name}", expected=reason, hint=hint)


def _is_missing(found: Any) -> bool:
    """Return whether a model gave no such activations; logits of no rows, (0, n), are given."""
    return len(found) == 0 and getattr(found, "ndim", 1) < 2
