"""Observations: of which tensors a criterion has seen a gradient or an input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from kd_prune.pruning.checks import listed
from kd_prune.pruning.selection import Masks, Score


class Observations:
    """The tensors that a criterion has observed, and what becomes of the others.

    A tensor that takes no part in training (an unused pooler, a network whose optimizer has not
    stepped yet) is ranked by magnitude, which says nothing next to other tensors' scores. Where an
    allocation compares tensors, such a tensor is therefore pruned after all others.

    Args:
        names: Names of all tensors.

    >>> observations = Observations(["a", "b"])
    >>> sorted(observations.missing)
    []
    >>> observations.add("a")
    >>> sorted(observations.missing)
    ['b']
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._seen = set[str]()
        self._missed = set[str]()  # in the latest update
        self._warned = set[str]()

    def add(self, name: str) -> None:
        """Note that a tensor was observed."""
        self._seen.add(name)

    @property
    def missing(self) -> set[str]:
        """Tensors that were never observed; none as long as no tensor was."""
        return set(self._names) - self._seen if self._seen else set()

    def comparable(self, score: Score, masks: Masks) -> Score:
        """Return scores that an allocation may compare: infinite for `missing` tensors."""
        missing = self.missing

        def compared(name: str) -> Tensor:
            if name not in missing:
                return score(name)
            return torch.full_like(masks[name], math.inf, dtype=torch.float32)

        return compared

    def warn(self, observed: str, *, is_last: bool) -> None:
        """Warn, once for each tensor, of those that are missing in two mask updates, or the last.

        In the first update a network may still be waiting for its turn.

        Args:
            observed: What the criterion observes, gradient or input.
            is_last: Whether no update follows.
        """
        again = self.missing if is_last else self.missing & self._missed
        new = [name for name in self._names if name in again - self._warned]
        self._missed = self.missing
        self._warned.update(new)
        if new:
            warnings.warn(
                f"{listed(new)}: no {observed} was seen before this mask update, so "
                "these weights are ranked by magnitude, and where one ranking compares tensors "
                "they are pruned last; leave what takes no part in training out of the scope",
                stacklevel=4,
            )

    def state(self) -> list[str]:
        """Return the observed tensors, as plain data."""
        return sorted(self._seen)

    def load(self, seen: Collection[str] | None) -> None:
        """Take over a saved state; None: that of a file from before it was saved, so all."""
        self._seen = set(self._names if seen is None else seen)
