"""PruningPreview: what will be pruned, when, and what stays dense; printed before a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kd_prune.pruning.update_schedule import UpdateSchedule


@dataclass(frozen=True, kw_only=True)
class TensorPreview:
    """A tensor in scope and how many of its weights will be zero at the end."""

    name: str
    shape: tuple[int, ...]
    size: int
    pruned: int


@dataclass(frozen=True, kw_only=True)
class PruningPreview:
    """Summary of the updates that a Pruner will make; ``print(preview)`` shows it.

    Attributes:
        tensors: Tensors in scope. Counts that depend on scores (`Global`) are computed from the
            current scores.
        updates: Step → sparsity of each mask update.
        total: Length of the run, in `unit`.
        unit: Unit of steps and of the length.
        excluded: Name → reason, of tensors that stay dense; empty where a scope was given.
    """

    tensors: Sequence[TensorPreview]
    updates: UpdateSchedule
    total: int
    unit: str = "optimizer steps"
    excluded: Mapping[str, str] = field(default_factory=dict)

    @property
    def pruned(self) -> int:
        """Number of weights that will be zero at the end."""
        return sum(tensor.pruned for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Number of weights in scope."""
        return sum(tensor.size for tensor in self.tensors)

    def __str__(self) -> str:
        """Format the ramp, the tensors in scope and the tensors that stay dense."""
        percent = 100 * self.pruned / self.size
        counts = {
            t.name: f"{'x'.join(map(str, t.shape))}, {t.pruned:,} pruned" for t in self.tensors
        }
        lines = [
            f"Pruning {self.pruned:,} of {self.size:,} weights ({percent:.2f} %) "
            f"in {len(self.tensors)} tensor{'s'[: len(self.tensors) - 1]}; {self._ramp()}",
            *_by_kind(counts),
        ]
        if self.excluded:
            lines += ["Left dense:", *_by_kind(self.excluded)]
            lines += ['To choose otherwise: scope=Scope(include=["*.weight"], exclude=["head.*"])']
        return "\n".join(lines)

    def _ramp(self) -> str:
        if not self.updates:
            return "masks stay unchanged"
        first, last = min(self.updates), max(self.updates)
        return (
            f"{len(self.updates)} mask updates from {first} to {last} of {self.total} {self.unit}, "
            f"then {self.total - last} at {self.updates[last]:g}"
        )


def _by_kind(tensors: Mapping[str, str]) -> list[str]:
    """Merge lines of the same text whose names differ in numbers only."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, text in tensors.items():
        kinds.setdefault((re.sub(r"\b\d+\b", "*", name), text), []).append(name)
    return [
        f"  {kind}: {text} each ({len(names)} tensors)"
        if len(names) > 1
        else f"  {names[0]}: {text}"
        for (kind, text), names in kinds.items()
    ]
