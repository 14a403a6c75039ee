"""What will be pruned, when, and what is left dense: a plan to read before a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kd_prune.pruning.schedule import Plan


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor in scope: how many of its weights will be zero at the end."""

    name: str
    shape: tuple[int, ...]
    size: int
    pruned: int


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What a Pruner is going to do; ``print(plan)`` shows it.

    Attributes:
        tensors: What is in scope. Where counts depend on scores (`Global`), they are those that
            the scores of now would give.
        updates: Step → sparsity of each mask update.
        total: Length of the run, in `unit`.
        unit: What steps are counted in.
        left: Name → reason, of tensors that stay dense; empty where a scope was given.
    """

    tensors: Sequence[PlannedTensor]
    updates: Plan
    total: int
    unit: str = "optimizer steps"
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def pruned(self) -> int:
        """Weights that will be zero at the end."""
        return sum(tensor.pruned for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Weights in scope."""
        return sum(tensor.size for tensor in self.tensors)

    def __str__(self) -> str:
        """A few lines of text: the ramp, the tensors by kind, what is left and why."""
        share = 100 * self.pruned / self.size
        counts = {t.name: f"{'x'.join(map(str, t.shape))}, {t.pruned:,} go" for t in self.tensors}
        lines = [
            f"Pruning {self.pruned:,} of {self.size:,} weights ({share:.2f} %) "
            f"in {len(self.tensors)} tensor{'s'[: len(self.tensors) - 1]}; {self._ramp()}",
            *_by_kind(counts),
        ]
        if self.left:
            lines += ["Left dense:", *_by_kind(self.left)]
            lines += ['To choose otherwise: scope=Scope(include=["*.weight"], exclude=["head.*"])']
        return "\n".join(lines)

    def _ramp(self) -> str:
        if not self.updates:
            return "masks stay as they are"
        first, last = min(self.updates), max(self.updates)
        return (
            f"{len(self.updates)} mask updates from {first} to {last} of {self.total} {self.unit}, "
            f"then {self.total - last} at {self.updates[last]:g}"
        )


def _by_kind(tensors: Mapping[str, str]) -> list[str]:
    """One line for all names that differ in numbers only and have the same text."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, text in tensors.items():
        kinds.setdefault((re.sub(r"\b\d+\b", "*", name), text), []).append(name)
    return [
        f"  {kind}: {text} each ({len(names)} tensors)"
        if len(names) > 1
        else f"  {names[0]}: {text}"
        for (kind, text), names in kinds.items()
    ]
